"""The tasks of `@task`, which names no app, and the one app to which all of them belong: the project's.

That is, in rsq's own processes, the app that -A or RSQ_APP names; in others the first `App` that is made, or the one of
which `set_default()` is called. Where there is none, it is `rsq.default_app`. Their calls go to its server by its
settings, task_defaults and routes, and its workers know them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

from rsq.calls.options import TaskOptions
from rsq.errors import InvalidTask, SettingsError
from rsq.task import AppLike, Task


class Owner(AppLike, Protocol):
    """What the app of shared tasks can do."""

    name: str
    tasks: dict[str, Task[..., Any]]

    def options_of(self, given: Mapping[str, Any]) -> TaskOptions: ...

    def register(self, function: Callable[..., Any], options: TaskOptions) -> Task[..., Any]: ...

    def take(self, task: Task[..., Any]) -> None: ...

    def check_twin(self, task: Task[..., Any]) -> None: ...


AnOwner = TypeVar("AnOwner", bound=Owner)


class SharedTasks(Generic[AnOwner]):
    """Those of this process.

    app     to which they belong now
    chosen  whether somebody said so; else it is the first one that was made
    """

    app: AnOwner

    def __init__(self) -> None:
        self.chosen = False
        self._made = 0
        self._held = False
        self._lock = threading.RLock()
        self._declared: dict[str, tuple[Task[..., Any], Mapping[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self._declared)

    def declare(self, *function: Any, **options: Any) -> Any:
        """What `@task` does, with or without options. Raises InvalidTask, DuplicateTask."""
        if function:
            return self._declare(function[0], options)
        self.app.options_of(options)  # what is wrong with them is said where they stand
        return lambda decorated: self._declare(decorated, options)

    def _declare(self, function: Callable[..., Any], options: Mapping[str, Any]) -> Task[..., Any]:
        with self._lock:
            task = self.app.register(function, self.app.options_of(options))
            self._declared[task.name] = task, options
            return task

    def meet(self, app: AnOwner) -> None:
        """An app was made. The first of all stands in until there is another one."""
        with self._lock:
            if self._made == 0:
                self.app = app
            elif self._made == 1 and not self.chosen:
                if self._held and not self._declared:
                    raise SettingsError(
                        f"App {app.name!r} was made while a test runs on the app of the fixture rsq_app, which is then "
                        "another one: import the module with your app at the top of the test module, or override "
                        "rsq_app so that it gives your app"
                    )
                if not self._held:
                    self._move(app)
            self._made += not self._held

    def belong_to(self, app: AnOwner) -> None:
        """Have them belong to this app.

        Raises InvalidTask where its task_defaults do not go with their options, DuplicateTask where it has another task
        of one of their names.
        """
        with self._lock:
            self._move(app)
            self.chosen = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the block no app takes them just because it is made."""
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before

    def _move(self, app: AnOwner) -> None:
        if app is self.app:
            return
        former = self.app.tasks
        changes = []
        for task, given in self._declared.values():  # all of them move, or none
            app.check_twin(task)
            try:
                changes.append((task, app.options_of(given)))
            except InvalidTask as error:
                raise InvalidTask(f"{task.name} in app {app.name!r}: {error}") from None
        for task, options in changes:
            app.take(task)
            task.belong_to(app, options)
            if former.get(task.name) is task:
                del former[task.name]
        self.app = app
