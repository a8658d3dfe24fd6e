"""What a running call says of itself: that it is to run again, how far it has come, and what it has found so far."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from rsq import codec, errors
from rsq.calls.options import TaskOptions
from rsq.calls.progress import Progress, pack_progress
from rsq.calls.request import Request, current
from rsq.calls.retry import RetryPolicy, asked_for
from rsq.hints import unknown_text

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.emitter import Output


class Runnable(Protocol):
    """What is needed of the task that runs."""

    name: str
    options: TaskOptions
    policy: RetryPolicy


class Home(Protocol):
    """What is needed of its app."""

    @property
    def client(self) -> Client: ...

    @property
    def tasks(self) -> Mapping[str, Runnable]: ...


class Running:
    """The part of a task that is for its own body."""

    if TYPE_CHECKING:
        app: Home
        name: str
        options: TaskOptions
        policy: RetryPolicy

    MaxRetriesExceededError = errors.MaxRetriesExceededError

    @property
    def request(self) -> Request:
        """The call that is running in this context."""
        return Request(current.get())

    @property
    def max_retries(self) -> int | None:
        """The option of this name: runs after the first one, None = without end."""
        return self.options.max_retries

    def retry(
        self,
        exc: BaseException | type[BaseException] | None = None,
        countdown: float | timedelta | None = None,
        max_retries: int | None = None,
        **unknown: NoReturn,
    ) -> NoReturn:
        """Run this call again later; never returns.

        With no retry left, and where the function was called directly, `exc` is raised here, in the body, as in Celery;
        without one MaxRetriesExceededError, or what is being handled. If the body lets it out, that is its failure, for
        good; it may catch it.

        exc          the error that made it necessary
        countdown    seconds to wait; default: the task's `default_retry_delay`, else its backoff
        max_retries  for this call; default: the task's option
        Raises       Retry; ValueError for what none of these can be
        """
        for name in unknown:
            raise TypeError(unknown_text("retry", name, "argument of retry", ("exc", "countdown", "max_retries")))
        delivery = current.get()
        # The task that runs may have called this one as a function.
        runs = self if delivery is None else self.app.tasks.get(delivery.task, self)
        raise asked_for(runs.name, delivery, runs.policy, sys.exc_info()[1], exc, countdown, max_retries)

    def progress(self, current: float, total: float | None = None, **info: Any) -> None:
        """Tell how far the running call has come, for `AsyncResult.progress` and `AsyncResult.info`.

        As often as you like: it is written twice a second at most, beside the task, and the last one always. It fails
        for a value that cannot be kept, and never because of the server. Outside of a running call it does nothing.

        info    what else is to be told, small
        Raises  EncodeError, MessageTooLarge
        """
        self._tell(Progress(current, total, info))

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Mapping[str, Any] | None = None
    ) -> None:
        """Celery's word for `progress`: `AsyncResult.state` shows `state` while the call runs, `info` shows `meta`.

        task_id  of the running call, or None, which means that, too
        state    a word of your own, such as ``PROGRESS``; None leaves it to rsq
        meta     a small map; its ``current`` and ``total`` are those of `AsyncResult.progress`
        Raises   ValueError for another call's id and for the words that end a call; TypeError; what `progress` raises
        """
        delivery = current.get()
        if delivery is not None and task_id not in (None, delivery.id):
            raise ValueError(f"update_state tells of the running call, {delivery.id}, and not of {task_id}")
        self._tell(Progress.of_meta("" if state is None else state, {} if meta is None else meta))

    def emit(self, value: Any) -> None:
        """Add a value to the output of the running call: whoever watches it by `AsyncResult.stream` sees it at once.

        Values go in batches, in order, and are written before the outcome of the call is. A body that emits faster
        than the server takes it waits here, also while the server is away, until its own time limit. Outside of a
        running call, and once its lease is lost, it does nothing.

        Raises  EncodeError, MessageTooLarge; OutputFull, in a coroutine: `aemit` waits there
        """
        output = self._output()
        if output is not None:
            output.emit(self._emitted(value))

    async def aemit(self, value: Any) -> None:
        """`emit` for coroutines."""
        output = self._output()
        if output is not None:
            await output.aemit(self._emitted(value))

    def _emitted(self, value: Any) -> bytes:
        return codec.encode(value, "emitted value", self.app.client.settings.max_message_bytes)

    def _output(self) -> Output | None:
        """That of the running call."""
        delivery = current.get()
        if delivery is None or delivery.lease_lost:
            return None
        if delivery.output is not None:
            output: Output = delivery.output
            return output
        # The task that runs may have called this one as a function.
        options, meta = self.app.tasks.get(delivery.task, self).options, delivery.meta
        length = meta.get("output_length", options.output_length)
        ttl_ms = max(1, int(meta.get("output_expires", options.output_expires) * 1000))
        return self.app.client.output_of(delivery, length, ttl_ms)

    def _tell(self, progress: Progress) -> None:
        delivery = current.get()
        if delivery is None or delivery.lease_lost:
            return
        self.app.client.report_progress(delivery.id, delivery.queue, pack_progress(progress))
