"""Where a run of the demo takes place: what shows it, its server, and the files that it goes through."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeAlias
from urllib.parse import quote

from rsq.broker.client import Client
from rsq.broker.embedded import EmbeddedServer
from rsq.broker.server_check import check_server
from rsq.demo.tasks import app
from rsq.testing.server import delete_namespace

Advance: TypeAlias = Callable[[int, str], None]
"""Takes how much is done so far, and a note to show beside it."""


class Stage(Protocol):
    """Where a run is shown."""

    def say(self, text: str) -> None:
        """Show a few lines."""

    def progress(self, label: str, length: int) -> AbstractContextManager[Advance]:
        """Show a bar."""


@dataclass(frozen=True)
class Place:
    """Of one run.

    home    a folder that is gone afterwards
    client  of the demo's app, on a namespace of its own
    server  which it is, in words
    """

    home: Path
    client: Client
    server: str


@contextmanager
def place_of_run(overrides: Mapping[str, Any]) -> Iterator[Place]:
    """A place, and nothing of it is left afterwards.

    overrides  settings from the command line; a `url` in them takes the place of the embedded server of its own
    Raises     BrokerError, SettingsError
    """
    with ExitStack() as stack:
        stack.enter_context(_one_interrupt())
        home = Path(stack.enter_context(TemporaryDirectory(prefix="rsq-demo-", ignore_cleanup_errors=True)))
        url = overrides.get("url") or stack.enter_context(embedded_server(home / "server"))
        namespace = f"{overrides.get('namespace', 'rsq')}-demo-{secrets.token_hex(4)}"
        client = stack.enter_context(_connected(url, namespace))
        with client.link() as link:
            server = check_server(link, client.settings)
        yield Place(home, client, str(server))


def library_files() -> list[str]:
    """The .py files of this interpreter's standard library; what was installed beside it does not count."""
    files = []
    for folder, subfolders, names in os.walk(sysconfig.get_path("stdlib")):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        files += [os.path.join(folder, name) for name in sorted(names) if name.endswith(".py")]
    return files


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal end a run as Ctrl-C does; a second one does not disturb the clearing up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler != signal.SIG_IGN]  # nohup stays nohup

    def interrupt(_number: int, _frame: object) -> None:
        for number in heard:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


@contextmanager
def embedded_server(directory: Path) -> Iterator[str]:
    """A server of our own, by its URL; gone afterwards."""
    server = EmbeddedServer(directory)
    try:
        server.start()
        yield f"embedded://{quote(str(directory))}"
    finally:
        server.stop()
        for folder in {directory, server.socket_path.parent}:  # a deep directory has its socket elsewhere
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _connected(url: str, namespace: str) -> Iterator[Client]:
    """The demo's app on a namespace of its own, which is empty again afterwards."""
    app.configure(url=url, namespace=namespace)
    try:
        yield app.client
    finally:
        delete_namespace(app.settings)
        app.close()
