"""A real PostgreSQL for the tests: its own data, on a unix socket, with no TCP port."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psycopg

from tests.helpers import wait_until

READY_S = 60
STOP_S = 60
USER = "rsq"

SETTINGS = {"listen_addresses": "", "fsync": "off", "max_connections": "50"}


def find_binaries() -> Path | None:
    """The directory of `initdb` and `postgres`, of the newest version that is there, or None."""
    packaged = Path("/usr/lib/postgresql").glob("*/bin/initdb")  # Debian leaves them off PATH
    for found in sorted(packaged, key=lambda path: float(path.parts[-3]), reverse=True):
        return found.parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Postgres:
    """One server process. Databases on it are made at will and go with it."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self.directory = Path(tempfile.mkdtemp(prefix="rsq-pg-", dir="/tmp"))  # a socket's path must be short
        self._log = self.directory / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._owner: dict[str, Any] = {}
        if os.geteuid() == 0:  # it refuses to run as root
            owner = _unprivileged()
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
            self._owner = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}

    def start(self) -> None:
        data = self.directory / "data"
        made = self._run("initdb", "-D", data, "-U", USER, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        if made.wait():
            raise RuntimeError(f"initdb failed:\n{self._log.read_text()}")
        settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
        self._process = self._run("postgres", "-D", data, "-k", self.directory, *settings)
        wait_until(self._answers, READY_S, "PostgreSQL to answer")

    def close(self) -> None:
        """End it, whoever is connected, and remove its data."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(STOP_S)
        shutil.rmtree(self.directory, ignore_errors=True)

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[Any, ...]]:
        """A connection without a transaction."""
        return psycopg.connect(host=str(self.directory), user=USER, dbname=database, autocommit=True)

    def create(self, database: str) -> None:
        with self.connect() as connection:
            connection.execute(f'CREATE DATABASE "{database}"'.encode())

    def sqlalchemy_url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.directory}"

    def django_settings(self, database: str) -> Mapping[str, Any]:
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": database,
            "USER": USER,
            "HOST": str(self.directory),
        }

    def _run(self, program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [self._binaries / program, *arguments],
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._owner,
            )

    def _answers(self) -> bool:
        assert self._process is not None
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"PostgreSQL ended with exit code {code}:\n{self._log.read_text()}")
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True


def _unprivileged() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")  # comes with Debian's package
    except KeyError:
        return pwd.getpwnam("nobody")
