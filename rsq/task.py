"""A task: the function, its options, and the ways to call it.

@app.task(queue="mail", max_retries=5)
def send_welcome(user_id: int) -> str: ...

send_welcome.delay(42)                          # enqueue, typed like the function itself
send_welcome.apply_async((42,), countdown=30)   # enqueue with options
send_welcome(42)                                # just call it, here and now
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import update_wrapper
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar

from rsq import codec
from rsq import result as asyncresult
from rsq.calls.announce import tell_after, tell_before
from rsq.calls.each import check_items
from rsq.calls.event import is_of_event
from rsq.calls.message import Message, check_id, new_id
from rsq.calls.options import CallOptions, TaskOptions
from rsq.calls.placement import Placement, marker_key
from rsq.calls.request import current
from rsq.calls.routes import Router
from rsq.calls.source import Source, follow_up
from rsq.calls.yields import emitting, is_generator
from rsq.canvas.inside import Inside
from rsq.canvas.signing import Signing
from rsq.canvas.starting import Starter
from rsq.clock import epoch_ms
from rsq.errors import SettingsError
from rsq.functions import arity_check, signature_of
from rsq.hints import hinted
from rsq.result import AsyncResult
from rsq.running import Running
from rsq.signals import after_publish, before_publish

if TYPE_CHECKING:
    from uuid import UUID

    from rsq.broker.answers import Accepted
    from rsq.broker.client import Client

P = ParamSpec("P")
R = TypeVar("R")


class EagerMode(Protocol):
    """What stands in for the broker in eager mode."""

    def __call__(self, task: Task[..., Any], message: Message, placement: Placement) -> AsyncResult[Any]: ...


class AppLike(Protocol):
    """What a task needs of its app."""

    @property
    def client(self) -> Client: ...

    @property
    def tasks(self) -> Mapping[str, Task[..., Any]]: ...

    @property
    def router(self) -> Router: ...

    @property
    def flows(self) -> Starter: ...

    @property
    def eager(self) -> EagerMode | None: ...


@hinted("Task")
class Task(Running, Inside, Signing[R], Generic[P, R]):
    """A function that workers can run. Made by `@app.task`; calling it runs it here and now."""

    if TYPE_CHECKING:
        app: AppLike
        __name__: str
        __qualname__: str

    is_async = False
    source: Source | None = None
    """The stream of events whose task it is, if it is one's."""

    def __init__(self, app: AppLike, function: Callable[..., Any], name: str, options: TaskOptions) -> None:
        self.name = name
        self.function = function
        update_wrapper(self, function, updated=())
        self.belong_to(app, options)

    def belong_to(self, app: AppLike, options: TaskOptions) -> None:
        """Be a task of this app from now on, with these options. Raises InvalidTask."""
        function = self.function
        self.app = app
        self.options = options
        self.policy = options.policy()
        self.is_plain = options.acks_late and not options.limited
        self.timelimit = options.timelimit
        self.is_timed = any(self.timelimit)
        self.result_ttl_ms = None if options.ignore_result else options.result_ttl_ms
        self.run: Callable[..., Any] = MethodType(function, self) if options.bind else function
        self.body = emitting(self.run, self.emit, self.aemit) if is_generator(function) else self.run
        self._signature = signature_of(self.run, function, options.bind)
        self.fits = arity_check(self._signature)
        self._defaults = CallOptions.of(options)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.run(*args, **kwargs)  # type: ignore[no-any-return]

    # -- enqueue

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """Enqueue a call with these arguments.

        Raises TypeError when they do not fit the function, EncodeError or MessageTooLarge when they cannot be carried,
        BrokerUnavailable, BrokerRefused, QueueFull, QueuePaused, DuplicateCall, NotReplicated.
        """
        message, placement = self.made(args, kwargs, self._defaults)
        return self._send(message, placement)

    def apply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """Enqueue a call with options for this call alone.

        args, kwargs  of the function, or None
        countdown    seconds to wait, by the server's clock
        eta          moment before which it does not start: a datetime (naive means the setting `timezone`)
        expires      seconds from now, or a datetime: a call that has not started by then is dropped
        queue, priority, max_retries, ignore_result, result_expires, time_limit, soft_time_limit, dedupe_key,
        dedupe_ttl, dedupe_until, on_duplicate, debounce, max_length, max_length_wait
                     as the task's options of these names
        version      a number beside a dedupe_key: once a newer version of the key is done, older ones do not start
        task_id      an id of your own, a text or a UUID; a second call with the same id is not enqueued while the first
                     is remembered
        wait_replicas  how many replicas must have it before this returns; default: the setting
        headers      a map that travels along, readable as `self.request.headers`
        stamps       a map, readable as `self.request.stamps`, by which calls can be revoked, see `Signature.stamp`
        each         "map" or "starmap": the one argument is a list, and the function is called with each item, or with
                     what is in it; the result is the list of what it gave
        link, link_error  signatures, one or several: what follows once it has succeeded, or failed for good
        Raises       what `delay` raises, and SettingsError for an option that does not fit
        """
        if "link" in options or "link_error" in options:
            return self.signature(args, kwargs, **options).apply_async()
        message, placement = self.message(args, kwargs, **options)
        return self._send(message, placement)

    def map_async(self, calls: Iterable[Sequence[Any]], **options: Any) -> list[AsyncResult[R]]:
        """Enqueue many calls at once, a thousand in a write.

        calls    one sequence of positional arguments for each call
        options  as `apply_async` takes them, the same for all; not task_id
        """
        if "task_id" in options:
            raise SettingsError("map_async makes an id for each call: task_id cannot be given")
        defaults = self.call_options(options)
        pairs = [self.made(self._args(args), {}, defaults) for args in calls]
        if current.get() is not None:
            pairs = [_followed_up(*pair) for pair in pairs]
        if self.app.eager is not None:
            return [self._send(message, placement) for message, placement in pairs]
        if before_publish.handlers:
            for message, _ in pairs:
                tell_before(message)
        client = self.app.client
        routed: dict[str, list[int]] = {}
        for number, (message, _) in enumerate(pairs):
            routed.setdefault(message.queue, []).append(number)
        results: dict[int, AsyncResult[R]] = {}
        for name, numbers in routed.items():
            queue = client.target(name)
            sent = client.producer.send_many(queue, [pairs[number] for number in numbers])
            for number, accepted in zip(numbers, sent, strict=True):
                results[number] = self._result(pairs[number][0], accepted)
        return [results[number] for number in range(len(pairs))]

    async def adelay(self, *args: P.args, **kwargs: P.kwargs) -> AsyncResult[R]:
        """`delay` for coroutines."""
        message, placement = self.made(args, kwargs, self._defaults)
        return await self._asend(message, placement)

    async def aapply_async(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> AsyncResult[R]:
        """`apply_async` for coroutines."""
        if "link" in options or "link_error" in options:
            return await self.signature(args, kwargs, **options).aapply_async()
        message, placement = self.message(args, kwargs, **options)
        return await self._asend(message, placement)

    def AsyncResult(self, task_id: str | UUID) -> AsyncResult[R]:
        """The handle of a call of this task that was sent earlier to its own queue. Raises SettingsError for no id."""
        return AsyncResult(self.app.client, check_id(task_id), self._defaults.queue, self.options.ignore_result)

    # -- how a message is made

    def message(
        self, args: Sequence[Any] | None = None, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> tuple[Message, Placement]:
        """What `apply_async` would send, unsent."""
        return self.made(*self.given(args, kwargs), self.call_options(options))

    def given(self, args: Any, kwargs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """Arguments that were given as a sequence and a map, as such."""
        kwargs = {} if kwargs is None else kwargs
        if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
            raise TypeError(f"{self.__name__}() kwargs: a map from names to arguments, not {kwargs!r}")
        return self._args(args), kwargs

    def _args(self, args: Any) -> Sequence[Any]:
        """Arguments that were given as a sequence, as such. A text is a sequence, too, but never meant so."""
        if type(args) is tuple:
            return args
        args = () if args is None else args
        if not isinstance(args, Sequence) or isinstance(args, (str, bytes, bytearray)):
            raise TypeError(f"{self.__name__}() args: a tuple or a list of the arguments, such as (1, 2), not {args!r}")
        return args

    def call_options(self, options: Mapping[str, Any]) -> CallOptions:
        """The task's options with those of one call. Raises SettingsError."""
        if not options:
            return self._defaults
        settings = self.app.client.settings
        for name in ("headers", "stamps"):
            if options.get(name):
                codec.encode(options[name], name, settings.max_message_bytes)
        return self._defaults.changed(options, settings.timezone)

    def made(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        defaults: CallOptions,
        awaited: Sequence[Any] | Mapping[str, Any] = (),
    ) -> tuple[Message, Placement]:
        """A message of these arguments, which are checked.

        awaited  stand for values that will be put in front of the arguments, or among the named ones, and are not in
                 the message yet
        """
        sent, named = args, kwargs
        if awaited:
            if isinstance(awaited, Mapping):
                kwargs = {**kwargs, **awaited}
            else:
                args = (*awaited, *args)
        if defaults.each is not None:
            self._check_each(defaults, args, kwargs)
        elif kwargs or not self.fits(len(args)):
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{self.__name__}() {error}") from None
        settings = self.app.client.settings
        body = codec.encode_call(sent, named, settings.max_message_bytes)
        placement, meta = defaults.placement, defaults.meta
        if defaults.dedupe_key is not None:
            key = self.key_of("dedupe_key", defaults.dedupe_key, args, kwargs)
            if defaults.version is not None:
                meta = {**meta, "version": [key, defaults.version, placement.dedupe_ttl_ms]}
            elif placement.replaces or placement.dedupe_until != "ttl":
                meta = {**meta, "begin": True}
            placement = replace(placement, dedupe_key=marker_key(key, defaults.version))
        if defaults.expires is not None:
            meta = {**meta, "expires": self._expires_ms(defaults.expires)}
        if (parent := current.get()) is not None:
            meta = {**meta, "parent": parent.id, "root": parent.meta.get("root", parent.id)}
        message = Message(
            defaults.task_id or new_id(),
            self.name,
            body,
            defaults.queue or self._route(args, kwargs) or settings.default_queue,
            defaults.priority,
            meta,
        )
        return message, placement

    def _check_each(self, defaults: CallOptions, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        options = self.options
        for name, key in (
            ("dedupe_key", defaults.dedupe_key),
            ("rate_limit_key", options.rate_limit_key),
            ("max_concurrency_key", options.max_concurrency_key),
        ):
            if key is not None:
                raise SettingsError(
                    f"{self.name} has a {name}, which is made of the arguments of one call, and each={defaults.each!r} "
                    "makes many in one: write group(task.s(x) for x in ...)"
                )
        try:
            check_items(str(defaults.each), args, kwargs, self.fits, self._signature)
        except TypeError as error:
            raise TypeError(f"{self.__name__}() {error}") from None

    def _route(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        router = self.app.router
        return router.queue_of(self.name, args, kwargs, self) if router else None

    def key_of(self, option: str, key: str | Callable[..., str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The key that an option such as `dedupe_key` makes of the arguments of a call. Raises SettingsError."""
        if callable(key):
            made = key(*args, **kwargs)
        else:
            bound = self._signature.bind(*args, **kwargs)
            bound.apply_defaults()
            try:
                made = key.format(*args, **bound.arguments)
            except (LookupError, AttributeError, ValueError) as error:
                raise SettingsError(f"{option} {key!r} of {self.name} does not fit the arguments: {error}") from None
        if not isinstance(made, str) or not 0 < len(made) <= 500:
            raise SettingsError(f"{option} of {self.name} must give a text of 1 to 500 characters, not {made!r}")
        return made

    def _expires_ms(self, expires: float | datetime) -> int:
        if isinstance(expires, datetime):
            return epoch_ms(expires, self.app.client.settings.timezone)
        return self.app.client.now_ms() + int(expires * 1000)

    def _send(self, message: Message, placement: Placement) -> asyncresult.AsyncResult[R]:
        if message.meta:
            message, placement = _followed_up(message, placement)
        if before_publish.handlers:
            tell_before(message)
        if self.app.eager is not None:
            return self._send_eagerly(message, placement)
        client = self.app.client
        queue = client.target(message.queue)
        return self._result(message, client.producer.send(queue, message, placement))

    async def _asend(self, message: Message, placement: Placement) -> asyncresult.AsyncResult[R]:
        if message.meta:
            message, placement = _followed_up(message, placement)
        if before_publish.handlers:
            tell_before(message)
        if self.app.eager is not None:
            return self._send_eagerly(message, placement)
        client = self.app.client
        queue = await client.atarget(message.queue)
        return self._result(message, await client.aproducer.send(queue, message, placement))

    def _send_eagerly(self, message: Message, placement: Placement) -> asyncresult.AsyncResult[R]:
        assert self.app.eager is not None
        result = self.app.eager(self, message, placement)
        if after_publish.handlers:
            tell_after(message, result.id, result.duplicate)
        return result

    def _result(self, message: Message, accepted: Accepted) -> asyncresult.AsyncResult[R]:
        if after_publish.handlers:
            tell_after(message, accepted.task_id, accepted.duplicate)
        return self.handle_of(message, accepted.task_id, accepted.duplicate)

    def handle_of(
        self, message: Message, task_id: str | None = None, duplicate: bool = False
    ) -> asyncresult.AsyncResult[R]:
        """The handle of the call that a message is; of a duplicate, of the call with this id, which stands."""
        ignored = message.meta.get("ignore_result", self.options.ignore_result)
        return AsyncResult(self.app.client, task_id or message.id, message.queue, ignored, duplicate)


def _followed_up(message: Message, placement: Placement) -> tuple[Message, Placement]:
    """What is to be sent: where the body of an event sends it, with an id made of that, unless it has its own."""
    parent = current.get()
    if parent is None or not is_of_event(parent.body) or placement.unique:
        return message, placement
    return follow_up(parent, message, placement)


class AsyncTask(Task[P, R]):
    """The task of an `async def`: called here and now it gives a coroutine, or an asynchronous generator; the result of
    a call that was sent is R.
    """

    is_async = True

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:  # type: ignore[override]
        return self.run(*args, **kwargs)  # type: ignore[no-any-return]
