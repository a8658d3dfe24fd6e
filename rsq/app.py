"""The app: settings, the registry of tasks, and the connection to the server, which is made at the first send.

What a user reaches through the app but lives higher (schedules, helpers for tests) is added by `rsq.App`.
"""

from __future__ import annotations

# redis-py needs it, and it cannot be imported any more once the interpreter ends: when a first call may yet be sent.
import concurrent.futures.thread  # noqa: F401
import inspect
import sys
import threading
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from rsq import settings as settings_module
from rsq.broker import queue_control as control
from rsq.calls.message import check_id
from rsq.calls.options import TaskOptions, options_from
from rsq.calls.routes import Router, Routes
from rsq.canvas import starting
from rsq.errors import DuplicateTask, InvalidTask, SettingsError, UnknownTask
from rsq.functions import check_function, place_of
from rsq.hints import hinted
from rsq.home import project
from rsq.naming import check_name, name_of, program
from rsq.result import AsyncResult
from rsq.settings import Settings
from rsq.shared import SharedTasks
from rsq.task import AsyncTask, EagerMode, Task

if TYPE_CHECKING:
    from types import FrameType
    from uuid import UUID

    from rsq.broker.client import Client
    from rsq.broker.worker_control import Control
    from rsq.broker.worker_inspect import Inspect
    from rsq.generator_task import AsyncGeneratorTask, GeneratorTask

P = ParamSpec("P")
Part = TypeVar("Part")
R = TypeVar("R")
Y = TypeVar("Y")


class Decorator(Protocol):
    """What `app.task(...)` gives: turns a function into a task of the same signature."""

    @overload
    def __call__(self, function: Callable[P, AsyncIterator[Y]], /) -> AsyncGeneratorTask[P, Y]: ...

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, Generator[Y, None, R]], /) -> GeneratorTask[P, Y, R]: ...

    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class BoundDecorator(Protocol):
    """What `app.task(bind=True)` gives: the first parameter is the task itself."""

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], AsyncIterator[Y]], /) -> AsyncGeneratorTask[P, Y]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], Generator[Y, None, R]], /) -> GeneratorTask[P, Y, R]: ...

    @overload
    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> Task[P, R]: ...


@hinted("App")
class BaseApp:
    """A set of tasks and the server that they go through.

    name           shown in logs and reports, and the owner of the schedules that the code declares; default: the module
                   that makes the app
    url            ``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``, ``unix://``,
                   ``embedded://``; default: RSQ_URL, else the embedded server
    task_defaults  options for every task that does not say otherwise: ``{"autoretry_for": ()}`` makes rsq retry only
                   where it is asked to
    settings       any field of `rsq.settings.Settings`
    Raises         SettingsError, InvalidTask
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        url: str | None = None,
        task_defaults: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.name = _checked_name(name)
        self.tasks: dict[str, Task[..., Any]] = {}
        self._parts: dict[Callable[[BaseApp], Any], Any] = {}
        self.eager: EagerMode | None = None
        self.router = Router(None)
        self._routes: Routes = None
        self._given = {**settings, "url": url}
        self._defaults = options_from(TaskOptions(), task_defaults or {})
        self._lock = threading.Lock()
        if any(value is not None for value in self._given.values()):
            # What stands in the code is checked where it stands; the environment is read at the first use.
            settings_module.load(self._given, {})
        shared.meet(self)

    if TYPE_CHECKING:

        @property
        def flows(self) -> starting.Starter: ...

    def __repr__(self) -> str:
        return f"<App {self.name}: {len(self.tasks)} tasks>"

    @cached_property
    def settings(self) -> Settings:
        """Settings from code, environment and defaults. Raises SettingsError."""
        return settings_module.load(self._given)

    @cached_property
    def client(self) -> Client:
        """The producer's side of the broker."""
        client = self._client_for(self.settings)
        return cast("Client", self.__dict__.setdefault("client", client))  # another thread may have been quicker

    def _client_for(self, settings: Settings) -> Client:
        # Late, as redis takes most of the time: a module that only declares tasks imports nothing of it.
        from rsq.broker.client import Client

        client = Client(settings)
        client.home = self
        return client

    def configure(self, **settings: Any) -> None:
        """Change settings before, or between, uses; open connections are closed. None leaves a setting as it is."""
        with self._lock:
            self._use({**self._given, **{name: value for name, value in settings.items() if value is not None}})

    @contextmanager
    def configured(self, **settings: Any) -> Iterator[None]:
        """`configure` for a block: at its end the app has the settings from before again."""
        before = self._given
        self.configure(**settings)
        try:
            yield
        finally:
            with self._lock:
                self._use(before)

    def _use(self, given: dict[str, Any]) -> None:
        """Go by other settings. Where they cannot be used, SettingsError, and all stays as it was."""
        settings = settings_module.load(given)
        used = "client" in self.__dict__
        following = self._client_for(settings) if used or given["url"] != self._given["url"] else None
        self._given = given
        self.__dict__.pop("settings", None)
        if following is not None and self.eager is None:  # what stands in for the client in eager mode stays
            self.close()
            self.client = following

    def close(self) -> None:
        """Close all connections; the next use opens them again."""
        client = self.__dict__.get("client")
        if client is not None:
            client.close()

    async def aclose(self) -> None:
        """`close` for coroutines: also closes the connections of this event loop. Call it before the loop ends."""
        client = self.__dict__.get("client")
        if client is not None:
            await client.aclose()

    def part(self, kind: Callable[[BaseApp], Part]) -> Part:
        """What lives above the app and belongs to it, such as its schedules: made once, at the first use.

        kind  a class that is made from the app
        """
        with self._lock:
            if kind not in self._parts:
                self._parts[kind] = kind(self)
            part: Part = self._parts[kind]
            return part

    # -- tasks

    @overload
    def task(self, function: Callable[P, AsyncIterator[Y]], /) -> AsyncGeneratorTask[P, Y]: ...

    @overload
    def task(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...

    @overload
    def task(self, function: Callable[P, Generator[Y, None, R]], /) -> GeneratorTask[P, Y, R]: ...

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(self, *, bind: Literal[True], **options: Any) -> BoundDecorator: ...

    @overload
    def task(self, **options: Any) -> Decorator: ...

    def task(self, *function: Any, **options: Any) -> Any:
        """Make a function a task. With or without options: ``@app.task`` or ``@app.task(queue="mail")``.

        options  fields of `rsq.task.TaskOptions`
        Raises   InvalidTask, DuplicateTask
        """
        chosen = self.options_of(options)
        if function:
            return self.register(function[0], chosen)
        return lambda decorated: self.register(decorated, chosen)

    def options_of(self, given: Mapping[str, Any]) -> TaskOptions:
        """The options of a task for which these are given. Raises InvalidTask."""
        return options_from(self._defaults, given)

    def register(self, function: Callable[..., Any], options: TaskOptions) -> Task[..., Any]:
        """Make a function a task with these options. Raises InvalidTask, DuplicateTask."""
        if isinstance(function, Task):
            raise InvalidTask(f"{function.name} is a task already")
        check_function(function)
        name = name_of(function) if options.name is None else check_name(options.name)
        is_async = inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
        kind = AsyncTask if is_async else Task
        task: Task[..., Any] = kind(self, function, name, options)
        self.take(task)
        return task

    def take(self, task: Task[..., Any]) -> None:
        """Know this task by its name. Raises DuplicateTask for another function of that name."""
        self.check_twin(task)
        self.tasks[task.name] = task

    def check_twin(self, task: Task[..., Any]) -> None:
        """Raises DuplicateTask where the name of this task is that of another function."""
        known = self.tasks.get(task.name)
        if known is not None and place_of(known.function) != place_of(task.function):
            raise DuplicateTask(
                f"two functions are registered as {task.name!r}: {place_of(known.function)} and "
                f"{place_of(task.function)}; give one of them another name=..."
            )

    def set_default(self) -> None:
        """Have the tasks of `@task`, which names no app, belong to this one; see `rsq.shared`.

        Raises InvalidTask, DuplicateTask; then they stay where they were.
        """
        shared.belong_to(self)

    def get_task(self, name: str) -> Task[..., Any]:
        """The task of this name. Raises UnknownTask, which names those that look alike."""
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTask(unknown_task_text(name, self.tasks)) from None

    # -- calls by name and id

    def send_task(
        self, name: str, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[Any]:
        """Enqueue a call of a task that this process need not know. Options as `Task.apply_async` takes them.

        The arguments cannot be checked against the signature here; where they do not fit, the call fails at the worker.
        """
        return self.task_by_name(name).apply_async(args, kwargs, **options)

    def task_by_name(self, name: str) -> Task[..., Any]:
        """The task of this name; where this process does not know it, one that takes any arguments and only sends."""
        if not isinstance(name, str):
            raise InvalidTask(f"a task is known by its name, a text such as 'shop.tasks.add', not by {name!r}")
        return self.tasks.get(name) or Task(self, _anything, check_name(name), replace(self._defaults, bind=False))

    def AsyncResult(self, task_id: str | UUID, queue: str | None = None) -> AsyncResult[Any]:
        """The handle of a call by its id. Without its queue every known queue is searched. SettingsError for no id."""
        return AsyncResult(self.client, check_id(task_id), queue)

    # -- routes

    @property
    def routes(self) -> Routes:
        """Where calls go that name no queue, of tasks that name none; see `rsq.calls.routes.Router`."""
        return self._routes

    @routes.setter
    def routes(self, routes: Routes) -> None:
        """Celery's `task_routes`: ``{"shop.mail.*": {"queue": "mail"}}``, a function, or a list. Or SettingsError."""
        self.router = Router(routes)
        self._routes = routes

    # -- control

    def pause(self, *queues: str, refuse: bool = False) -> None:
        """Have workers take nothing more from these queues until `resume`. What runs goes on; it outlives restarts.

        refuse  calls are refused, too: sending one raises QueuePaused
        """
        control.pause(self.client, queues, refuse)

    def revoke(self, *task_ids: str | UUID, terminate: bool = False, queue: str | None = None) -> dict[str, str]:
        """Have calls not run; see `AsyncResult.revoke`. What is revoked is remembered for a day.

        queue    of the calls; without it every known queue is searched
        Returns  for each id: ``revoked`` it was delayed, and has ended now; ``marked`` it will not start, unless it
                 runs already; ``done`` it had ended before
        """
        return self.client.revoke([check_id(task_id) for task_id in task_ids], queue, terminate)

    def resume(self, *queues: str) -> list[str]:
        """End the pause of these queues; gives those that were paused."""
        return control.resume(self.client, queues)

    @property
    def control(self) -> Control:
        """What people tell live workers: shutdown, pool_grow, pool_shrink. See `rsq.broker.worker_control`."""
        from rsq.broker.worker_control import Control

        return Control(self.client)

    def inspect(self, destination: Collection[str] | None = None, timeout: float = 1.0, limit: int = 100) -> Inspect:
        """What live workers do: active, reserved, scheduled, stats, registered, ping: `rsq.broker.worker_inspect`."""
        return self.control.inspect(destination, timeout, limit)

    def queues(self) -> list[str]:
        """The queues that this app's tasks and routes name, the default one first."""
        named = [task.options.queue for task in self.tasks.values() if task.options.queue]
        return list(dict.fromkeys([self.settings.default_queue, *named, *self.router.queues]))

    def unread(self, queues: Collection[str]) -> list[str]:
        """The queues to which calls of this app's tasks go and that are not among these, as far as it can be told."""
        go = {
            task.options.queue or self.router.said_of(task.name, self.settings.default_queue)
            for task in self.tasks.values()
        }
        return sorted({queue for queue in go if queue} - {*queues})


shared: SharedTasks[BaseApp] = SharedTasks()
"""The tasks of this process that name no app."""

project.find = lambda: shared.app


def unknown_task_text(name: str, known: Mapping[str, object]) -> str:
    """What to tell about a name that nobody registered."""
    import difflib

    alike = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(alike)}?" if alike else f"{len(known)} tasks are registered"
    return f"no task is registered as {name!r}: {hint}"


def _anything(*args: Any, **kwargs: Any) -> None:
    """Stands for a task of which only the name is known here."""


def _checked_name(name: str | None) -> str:
    """The name of an app. Raises SettingsError."""
    if name is None:
        return _maker()
    if not isinstance(name, str) or not name or not name.isprintable():
        raise SettingsError(f"an app is named by a text such as 'shop', not {name!r}")
    return name


def _maker() -> str:
    """The module that makes an app, so that two apps without a name do not take each other's schedules for theirs."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "rsq"))
        if module != "rsq" and not module.startswith("rsq."):
            return program() if module == "__main__" else module
        frame = frame.f_back
    return "rsq"
