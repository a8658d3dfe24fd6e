"""Helpers for tests, as `app.testing`: calls that run inline without a server, or a real worker on a real one.

with app.testing.eager():                # calls run here and now, no server needed
    assert add.delay(2, 3).get() == 5

with app.testing.worker() as worker:     # a real worker in a thread, on a server of this test run
    add.delay(2, 3)
    worker.wait_idle()
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rsq.app import BaseApp, shared
from rsq.errors import SettingsError
from rsq.settings import Settings
from rsq.testing.eager import Eager, Mode
from rsq.testing.server import TemporaryServer, delete_namespace, temporary_server
from rsq.testing.worker import ThreadWorker

__all__ = ["TemporaryServer", "Testing", "ThreadWorker", "project_app"]


@contextmanager
def project_app() -> Iterator[Any]:
    """The project's app, the one of `@task`, for the block of a test: what the fixture `rsq_app` stands on.

    Raises  SettingsError where it cannot be told: else calls of the tasks of another app would go to a real server. For
            that reason an App that is made within the block is refused, too, where there was none before
    """
    if not shared.chosen:
        others = {place: app for place, app in _apps_of_modules().items() if app is not shared.app}
        if others:
            raise SettingsError(
                f"the fixture rsq_app cannot tell which app is under test, {shared.app.name!r} or {', '.join(others)}: "
                "override it so that it gives your app, or call set_default() of that app"
            )
    with shared.held():
        yield shared.app


def _apps_of_modules() -> dict[str, BaseApp]:
    """The apps that stand in modules, and have tasks; by their places."""
    found: dict[int, tuple[str, BaseApp]] = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("rsq."):
            continue
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if issubclass(type(value), BaseApp) and value.tasks:
                found.setdefault(id(value), (f"{module_name}.{name}", value))
    return dict(found.values())


class Testing:
    """What `app.testing` is."""

    __test__ = False  # pytest takes every class with such a name for tests

    def __init__(self, app: BaseApp) -> None:
        self._app = app
        self._lock = threading.Lock()
        self._eager: Eager | None = None
        self._modes: list[Mode] = []
        self._isolations = 0

    @contextmanager
    def eager(self, propagate: bool = True) -> Iterator[None]:
        """Calls of the app's tasks run inline, in whatever thread they are made, as a worker would run them.

        Arguments, errors and results go through the codec, retries are followed without waiting, dedupe holds within
        the block, and no server is asked for anything: what is not about calls (`app.pause`, `app.schedules`) raises
        SettingsError outside of a block of `isolated`. Delays and priorities mean nothing. Blocks may be nested.

        propagate  a call that fails for good raises its error where it was made; of calls that tasks make, the
                   outermost one raises. False: the error is in the result alone
        """
        mode = self._enter_eager(propagate)
        try:
            yield
        finally:
            self._leave_eager(mode)

    @contextmanager
    def isolated(self, url: str | None = None) -> Iterator[None]:
        """For the block the app uses a namespace of its own, empty at the beginning and deleted at the end.

        url     the server; None: the embedded server of this process, never the one that the app's settings name
        Raises  SettingsError
        """
        name = f"test-{os.urandom(6).hex()}"
        with self._app.configured(url=url or temporary_server().url, namespace=name):
            settings = self._app.settings
            self._isolations += 1
            try:
                yield
            finally:
                self._isolations -= 1
                delete_namespace(settings)

    @contextmanager
    def worker(self, queues: Sequence[str] | str | None = None, url: str | None = None) -> Iterator[ThreadWorker]:
        """A real worker in a thread of this process. When the block ends, so does the worker, after its running task.

        queues  default: all that the app's tasks name
        url     the server: the worker runs in a block of `isolated`. None inside such a block: the worker joins that
        Raises  BrokerError when it cannot begin; at the end, what ended the worker before its time
        """
        names = [queues] if isinstance(queues, str) else list(queues or ())
        with ExitStack() as stack:
            if url is not None or not self._isolations:
                stack.enter_context(self.isolated(url))
            worker = ThreadWorker(self._app, names)
            worker.start()
            try:
                yield worker
            finally:
                worker.stop()
            worker.check()

    def _is_isolated(self, settings: Settings) -> bool:
        """Whether these are the settings of a block of `isolated`, so that nothing which they reach is in use."""
        return self._isolations > 0 and settings == self._app.settings

    def _enter_eager(self, propagate: bool) -> Mode:
        with self._lock:
            if self._eager is None:
                self._eager = Eager(self._app, self._is_isolated)
            mode = Mode(self._eager, propagate)
            self._modes.append(mode)
            self._app.eager = mode
        return mode

    def _leave_eager(self, mode: Mode) -> None:
        with self._lock:
            self._modes.remove(mode)
            self._app.eager = self._modes[-1] if self._modes else None
            if self._eager is not None and not self._modes:
                self._eager.close()
                self._eager = None
