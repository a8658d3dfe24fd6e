"""The server of a test run, and the removal of what a test leaves on a server."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from urllib.parse import quote

from rsq import keys
from rsq.broker.connection import Endpoint, Link
from rsq.broker.embedded import EmbeddedServer
from rsq.errors import BrokerError
from rsq.settings import Settings

LINK_TIMEOUT_S = 5.0


class TemporaryServer:
    """An embedded server in a directory of its own. It starts at its first use and ends with this process.

    url  for the app, and for processes that the test starts: ``{"RSQ_URL": server.url}``
    """

    def __init__(self) -> None:
        self._server = EmbeddedServer(Path(tempfile.mkdtemp(prefix="rsq-test-")))
        self.url = f"embedded://{quote(str(self._server.directory))}"
        self._maker = os.getpid()
        # An embedded server outlives those who use it, so somebody must end it even when this process is killed.
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", _WATCH, self._server.directory],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        atexit.register(self._end)

    def __repr__(self) -> str:
        return f"<TemporaryServer {self.url}>"

    def start(self) -> None:
        """Start it now, for the sake of clear errors. Raises BrokerUnavailable when there is no server program."""
        self._server.start()

    def _end(self) -> None:
        if os.getpid() != self._maker:
            return  # a forked child that ends has nothing to end
        remove_server(self._server)
        with self._watcher:
            self._watcher.kill()


_WATCH = """
import sys, pathlib
sys.stdin.read()
from rsq.broker.embedded import EmbeddedServer
from rsq.testing.server import remove_server
remove_server(EmbeddedServer(pathlib.Path(sys.argv[1])))
"""


def remove_server(server: EmbeddedServer) -> None:
    """Stop an embedded server and delete its data."""
    try:
        server.stop()
    finally:
        for directory in (server.directory, server.socket_path.parent):
            shutil.rmtree(directory, ignore_errors=True)


@cache
def temporary_server() -> TemporaryServer:
    """The server of this process's tests."""
    return TemporaryServer()


def delete_namespace(settings: Settings) -> None:
    """Delete all keys of a namespace, whatever kind they are; where there is no server there is nothing to do."""
    endpoint = Endpoint.of(settings)
    if endpoint.embedded is not None and not endpoint.embedded.status().running:
        return  # nobody has used it, and looking must not start it
    namespace = settings.namespace
    link = Link(endpoint, LINK_TIMEOUT_S)
    try:
        numbers = {int(each) for each in link.call("HVALS", keys.partitions(namespace)) if each.isdigit()}
        for pattern in keys.patterns(namespace, {keys.PARTITION, *numbers}):
            cursor = b"0"
            while True:
                cursor, found = link.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
                if found:
                    link.call("UNLINK", *found)
                if cursor == b"0":
                    break
    except BrokerError:
        pass  # the test has taken the server away, or its rights
    finally:
        link.close()
