"""The commands as people type them, and what they say to mistakes: one line that tells what to do next."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rsq import App, TaskRevoked, group, keys
from tests.conftest import MakeServer
from tests.helpers import free_port, wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals

Rsq = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def rsq(url: str, tmp_path: Path, journal: Journal) -> Rsq:
    """Runs the command as a process, in an empty directory."""

    def run(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RSQ_URL": url, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), **env}
        return subprocess.run(
            [sys.executable, "-m", "rsq", *arguments],
            env={name: value for name, value in environment.items() if value},
            input=stdin,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What went to stderr, which must be one line of rsq's and no traceback."""
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rsq: ")
    return lines[0]


# -- mistakes


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("", "no app given"),
        ("nowhere.tasks", "no module 'nowhere'"),
        ("tests.integration.tasks:nothing", "no attribute 'nothing'"),
        ("tests.integration.tasks:JOURNAL", "is str, not an rsq.App"),
        (":app", "names no app"),
        ("tests/integration/tasks.py", "-A tests.integration.tasks"),
        ("./tasks.py:app", "-A tasks:app"),
        ("tasks.py", "not a file: -A tasks"),
        ("json", "holds no App and no task"),
    ],
)
def test_an_app_that_is_not_there(rsq: Rsq, name: str, text: str) -> None:
    done = rsq("worker", RSQ_APP=name)
    assert done.returncode == 2
    assert text in one_line(done)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("import nothing_of_this_name", "no module named 'nothing_of_this_name'"),
        ("1 / 0", "broken.py:1: ZeroDivisionError"),
        ("def (", "broken.py:1: SyntaxError"),
        ("from rsq import App\napp = App(leese_s=3)", "no setting is called 'leese_s'"),
        ("from rsq import task\n@task(ques='x')\ndef f(): ...", "no task option is called 'ques'"),
        ("from rsq import task\ntask(lambda: 1)", "a lambda has no name"),
        ("from rsq import task\ndef f():\n    @task\n    def g(): ...\nf()", "defined inside a function"),
        ("from rsq import App\na = App('a')\nb = App('b')", "holds several apps: choose one"),
        ("from rsq import App\na = App()\nb = App()", "holds several apps of one name"),
        ("import os\nos._exit(3)", "died while it loaded the app (exit 3)"),
    ],
)
def test_an_app_that_cannot_be_loaded(rsq: Rsq, tmp_path: Path, source: str, text: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    done = rsq("-A", "broken", "worker", "-c", "1")
    assert done.returncode == 2
    assert text in one_line(done)


@pytest.mark.parametrize("command", [["status"], ["dead", "list"], ["result", "x"], ["purge", "default"]])
def test_a_server_that_cannot_be_reached(rsq: Rsq, command: list[str]) -> None:
    done = rsq("-A", "tests.integration.tasks", *command, RSQ_URL=f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert done.returncode == 4
    assert "cannot be reached" in one_line(done)
    assert "secret" not in done.stderr


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis//localhost", "embedded://relative"])
def test_a_wrong_url(rsq: Rsq, url: str) -> None:
    done = rsq("status", RSQ_URL=url)
    assert done.returncode == 2
    assert "embedded://" in one_line(done)


def test_an_empty_list_of_queues_is_not_all_of_them(rsq: Rsq) -> None:
    done = rsq("-A", "tests.integration.tasks", "worker", "-Q", "")
    assert done.returncode == 2
    assert "names no queue" in one_line(done)


def test_queues_that_are_named_one_by_one_are_all_read(rsq: Rsq) -> None:
    done = rsq("-A", "tests.integration.tasks", "worker", "-Q", "a", "-Q", "b,a")
    assert done.returncode == 2
    assert "-Q a,b,a: queue a is named twice" in one_line(done)


@pytest.mark.parametrize(
    ("command", "option"), [("worker", "-A"), ("health", "--namespace"), ("dead list", "--url"), ("call x", "--app")]
)
def test_a_global_option_behind_the_command(rsq: Rsq, command: str, option: str) -> None:
    line = one_line(rsq(*command.split(), option, "x"))
    assert line.endswith(f" {option} goes before the command: python -m rsq {option} ... {command.removesuffix(' x')}")


def test_a_wrong_password(rsq: Rsq, own_server: MakeServer) -> None:
    server = own_server(password="right")
    assert rsq("status", RSQ_URL=server.url).returncode == 0
    wrong = server.url.replace("right", "wrong-one")
    assert wrong != server.url
    for command in (["status"], ["-A", "tests.integration.tasks", "worker"]):
        done = rsq(*command, RSQ_URL=wrong)
        assert done.returncode == 4
        assert "refused the credentials" in one_line(done)
        assert "wrong-one" not in done.stderr


def test_a_server_that_is_too_old(rsq: Rsq, own_server: MakeServer) -> None:
    # XAUTOCLAIM came with 6.2; without it a server is like an older one.
    server = own_server(config={"rename-command": 'XAUTOCLAIM ""'})
    done = rsq("-A", "tests.integration.tasks", "worker", RSQ_URL=server.url)
    assert done.returncode == 4
    assert "needs Redis 6.2 or newer" in one_line(done)


def test_a_server_that_may_evict_queues(rsq: Rsq, own_server: MakeServer, start_worker: StartWorker) -> None:
    server = own_server(config={"maxmemory-policy": "allkeys-lru"})
    done = rsq("-A", "tests.integration.tasks", "worker", RSQ_URL=server.url)
    assert done.returncode == 4
    assert "allkeys-lru" in one_line(done)
    assert start_worker(worker_url=server.url, RSQ_ALLOW_EVICTION="true").stop() == 0


@pytest.mark.parametrize(
    ("variable", "value"), [("RSQ_LEASE_S", "soon"), ("RSQ_NAMESPACE", "a b"), ("RSQ_ALLOW_EVICTION", "perhaps")]
)
def test_a_wrong_setting_in_the_environment(rsq: Rsq, variable: str, value: str) -> None:
    done = rsq("status", **{variable: value})
    assert done.returncode == 2
    assert value in one_line(done)


def test_a_wrong_queue_name(rsq: Rsq) -> None:
    done = rsq("-A", "tests.integration.tasks", "worker", "-Q", "a b")
    assert done.returncode == 2
    assert "queue name 'a b'" in one_line(done)


# -- the commands


def test_call_and_result(rsq: Rsq, start_worker: StartWorker) -> None:
    start_worker(concurrency=1)
    app = ("-A", "tests.integration.tasks")
    done = rsq(*app, "call", tasks.add.name, "1", "2", "--wait")
    assert (done.returncode, done.stdout) == (0, "3\n")
    sent = rsq("call", tasks.add.name, "4", "--kwargs", '{"b": 5}').stdout.strip()
    waited = rsq("result", sent, "--wait", "--json")
    assert waited.returncode == 0
    assert json.loads(waited.stdout)["value"] == 9
    failed = rsq(*app, "call", tasks.raises.name, "key", "--wait")
    assert failed.returncode == 1
    assert "KeyError" in failed.stderr
    nothing = rsq("result", "unheard-of")
    assert nothing.returncode == 3
    assert nothing.stderr.startswith("PENDING: no result of unheard-of yet; rsq status tells")
    late = rsq("call", tasks.add.name, "1", "2", "-Q", "nobody-reads-it", "--wait", "--timeout", "0.1")
    assert late.returncode == 3
    assert re.fullmatch(r"PENDING: no result of [0-9a-f]{32} within 0.1 s; rsq status .*\n", late.stderr)
    unknown = rsq(*app, "call", "tests.integration.tasks.ad", "1")
    assert unknown.returncode == 2
    assert f"did you mean {tasks.add.name}" in one_line(unknown)


def test_status(rsq: Rsq, start_worker: StartWorker, app: App) -> None:
    start_worker("-Q", "default,other", concurrency=1)
    tasks.add.delay(1, 1).get(timeout=10)
    tasks.add.apply_async((1, 1), countdown=100)
    tasks.add.apply_async((1, 1), queue="unheard")
    told = json.loads(rsq("status", "--json").stdout)
    queues = {queue["queue"]: queue for queue in told["queues"]}
    assert queues["default"]["delayed"] == 1
    assert queues["default"]["counters"]["succeeded"] == 1
    assert queues["unheard"]["ready"] == 1
    (worker,) = told["workers"]
    assert worker["queues"] == ["default", "other"]
    text = rsq("status").stdout
    assert "unheard" in text
    assert worker["id"] in text


def test_status_without_anything(rsq: Rsq) -> None:
    done = rsq("status")
    assert done.returncode == 0
    assert "no workers" in done.stdout


def test_dead_letters_can_be_seen_sent_again_and_deleted(
    rsq: Rsq, start_worker: StartWorker, app: App, redis: Any
) -> None:
    start_worker(concurrency=1)
    handle = tasks.raises.delay("key")
    handle.get(timeout=10, propagate=False)
    redis.xadd(app.client.queue(None).keys.stream(), {"raw": "rubbish"})
    wait_until(lambda: totals(app).dead == 2, what="both dead letters")
    listed = rsq("dead", "list").stdout
    assert handle.id in listed
    assert "KeyError" in listed
    assert "undecodable" in listed
    shown = rsq("dead", "show", handle.id).stdout
    assert "['key']" in shown
    assert "in raises" in shown
    assert json.loads(rsq("dead", "show", handle.id, "--json").stdout)["args"] == ["key"]
    assert one_line(rsq("dead", "show", "nobody")).endswith("see rsq dead list")
    assert "say which" in one_line(rsq("dead", "redrive"))
    for command in (["redrive"], ["purge", "--yes"]):
        nobody = rsq("dead", *command, "nobody")
        assert (nobody.returncode, nobody.stderr.endswith("see rsq dead list\n")) == (1, True)
    again = rsq("dead", "redrive", handle.id, "nobody")
    assert "nobody" in again.stderr
    assert again.stdout == "sent 1 dead letter of queue default again\n"
    wait_until(lambda: totals(app).counters["dead"] == 3, what="it to die again")
    refused = rsq("dead", "redrive", "--all")
    assert refused.returncode == 1
    assert "it was never a message" in refused.stderr
    wait_until(lambda: settled(app) and totals(app).counters["dead"] == 4, what="it to die once more")
    assert rsq("dead", "purge", "--all", stdin="n\n").returncode == 1
    assert rsq("dead", "purge", "--all", "--yes").stdout == "deleted 2 dead letters of queue default\n"
    assert rsq("dead", "list").stdout == "no dead letters in queue default\n"


def test_flows_can_be_seen_and_cancelled(rsq: Rsq, start_worker: StartWorker, app: App) -> None:
    assert rsq("flow", "list").stdout.startswith("no flows")
    start_worker(concurrency=1)
    flow = app.flow("nightly\x1b[2J")
    slow = flow.add(tasks.add.s(1, 2).set(countdown=600), name="slow")
    flow.add(
        group(tasks.note.s(), tasks.note.s()), after=[slow, flow.add(tasks.add.s(1, 1), name="quick")], name="both"
    )
    run = flow.start()
    dead = (tasks.raises.s("key").on_error(tasks.note.si("told")) | tasks.note.s()).delay()
    assert dead.parent is not None
    with pytest.raises(KeyError):
        dead.get(timeout=30)
    wait_until(
        lambda: (app.flows[dead.id].state, run.nodes["quick"]) == ("failed", "succeeded"), what="what runs to end"
    )
    listed = rsq("flow", "list").stdout
    assert re.search(rf"{run.id} +started +1 +0 +3 .*nightly\\x1b\[2J", listed)
    assert re.search(rf"{dead.id} +failed +0 +2 +0 .*raises\('key'\)", listed)
    assert len(rsq("flow", "list", "--limit", "1").stdout.splitlines()) == 2
    assert {each["id"] for each in json.loads(rsq("flow", "list", "--json").stdout)} == {run.id, dead.id}
    shown = rsq("flow", "show", run.id).stdout
    assert "calls      4: 1 done, 0 failed, 3 open" in shown
    tree = [line.split()[:4] for line in shown.splitlines()[shown.splitlines().index("") + 2 :]]
    assert [row[:2] for row in tree[:2]] == [["slow", "released"], ["quick", "ok"]]
    assert tree[2][:4] == ["->", "(all", "of", "these)"]
    assert [row[:3] for row in tree[3:]] == [["->", "both", "waiting"]] * 2
    nodes = json.loads(rsq("flow", "show", run.id, "--json").stdout)["nodes"]
    assert [node["name"] for node in nodes] == ["slow", "quick", "both", "both", "both"]
    assert "and 3 more: give --limit" in rsq("flow", "show", run.id, "--limit", "2").stdout
    errback = rsq("flow", "show", dead.id).stdout.splitlines()[-1]
    assert errback.startswith("note (errback)")
    assert f"flow       {dead.id}" in rsq("dead", "show", dead.parent.id).stdout
    assert one_line(rsq("flow", "show", "nobody")).endswith("see rsq flow list")
    assert "cannot be used" in one_line(rsq("flow", "show", "no id"))
    cancelled = rsq("flow", "cancel", run.id, "nobody")
    assert (cancelled.returncode, cancelled.stdout) == (1, "cancelled 1 flow\n")
    assert "flow nobody has ended, or is not there" in cancelled.stderr
    with pytest.raises(TaskRevoked):
        run.get(timeout=30)
    assert rsq("flow", "cancel", dead.id).returncode == 0
    refused = rsq("dead", "redrive", dead.parent.id)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("rsq dead redrive --alone")
    assert rsq("dead", "redrive", dead.parent.id, "--alone").returncode == 0


def test_what_a_task_says_reaches_no_terminal_unescaped(
    rsq: Rsq, start_worker: StartWorker, app: App, redis: Any
) -> None:
    start_worker(concurrency=1, RSQ_UNKNOWN_TASK_GRACE_S="0")
    forged = "\x1b]0;OWNED\x07\x1b[2J \u202e\U0001f600\nforged line"
    handle = tasks.raises.delay(forged)
    handle.get(timeout=10, propagate=False)
    redis.xadd(app.client.queue(None).keys.stream(), {"id": "x", "task": "a\x1b[2J\nb", "body": "?", "meta": ""})
    wait_until(lambda: totals(app).dead == 2, what="both dead letters")
    for command in (["dead", "list"], ["dead", "show", handle.id], ["result", handle.id]):
        done = rsq(*command, PYTHONIOENCODING="latin-1")
        told = done.stdout + done.stderr
        assert done.returncode == int(command[0] == "result"), told
        assert "OWNED" in told
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e]", told)
        assert command[1] != "list" or len(told.splitlines()) == 3


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_value_that_json_or_python_cannot_print(
    rsq: Rsq, start_worker: StartWorker, redis: Any, as_json: list[str]
) -> None:
    start_worker(concurrency=1)
    sent = tasks.returns.delay("odd")
    sent.get(timeout=10)
    dead = tasks.raises.apply_async(kwargs={"kind": [10**5000]})
    dead.get(timeout=10, propagate=False)
    done = rsq("result", sent.id, *as_json)
    assert (done.returncode, done.stderr) == (0, "")
    if as_json:
        value = json.loads(done.stdout)["value"]
        assert value == {"[1, 2]": "x", str(uuid.UUID(int=7)): None, "big": hex(10**5000)}
    for command in (["dead", "list"], ["dead", "show", dead.id]):
        done = rsq(*command, *as_json)
        assert (done.returncode, done.stderr) == (0, "")
        assert dead.id in done.stdout


def test_an_odd_member_among_the_queues_hides_no_other(rsq: Rsq, app: App, redis: Any) -> None:
    sent = tasks.add.delay(1, 2)
    redis.sadd(keys.queues(app.settings.namespace), "a b", b"\xff", "x" * 300)
    assert rsq("status").returncode == 0
    assert rsq("result", sent.id).returncode == 3
    assert rsq("revoke", sent.id).returncode == 0


def test_ctrl_c_ends_a_wait_with_130(url: str, redis: Any) -> None:
    path = os.pathsep.join(part for part in sys.path if part)
    waits = subprocess.Popen(
        [sys.executable, "-m", "rsq", "result", "unheard-of", "--wait"],
        env={**os.environ, "RSQ_URL": url, "PYTHONPATH": path},
        stderr=subprocess.PIPE,
    )
    wait_until(lambda: any(b"unheard-of" in channel for channel in redis.pubsub_channels()), what="it to wait")
    waits.send_signal(signal.SIGINT)
    _, told = waits.communicate(timeout=60)
    assert (waits.returncode, told) == (130, b"")


def test_purge(rsq: Rsq, app: App, redis: Any) -> None:
    tasks.add.map_async([(number, 1) for number in range(1500)])
    tasks.add.apply_async((1, 1), countdown=100)
    tasks.add.apply_async((1, 1), priority=4)
    assert rsq("purge", "default", stdin="n\n").returncode == 1
    assert rsq("purge", "default", "--yes").stdout == "dropped 1502 messages of queue default\n"
    assert "no queue is called 'defualt'; there are: default" in rsq("purge", "defualt", "--yes").stderr
    assert settled(app)


@pytest.mark.parametrize(
    "command",
    [[], ["worker"], ["call"], ["result"], ["status"], ["purge"], ["dead"], ["server"], ["demo"], ["health"], ["bench"]]
    + [["dead", name] for name in ("list", "show", "redrive", "purge")]
    + [["flow", *name] for name in ([], ["list"], ["show"], ["cancel"])],
)
def test_every_command_has_help_with_an_example(rsq: Rsq, command: list[str]) -> None:
    done = rsq(*command, "--help")
    assert done.returncode == 0
    assert "Example:" in done.stdout


def test_output_into_a_closed_pipe(url: str) -> None:
    done = subprocess.run(
        f"{sys.executable} -m rsq status | true",
        shell=True,
        env={**os.environ, "RSQ_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("app")
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_worker_tells_which_queues_it_leaves_to_others(start_worker: StartWorker, pool: str) -> None:
    celerys, whole = start_worker("-Q", "celery", "-P", pool), start_worker("-P", pool)
    assert "celery; not read here, though calls go there: default" in celerys.log()
    assert "not read here" not in whole.log()


def test_arguments_are_logged_only_when_asked(start_worker: StartWorker, app: App) -> None:
    quiet, talking = start_worker("-Q", "quiet"), start_worker("-Q", "talking", "--log-arguments")
    for queue in ("quiet", "talking"):
        tasks.note.apply_async(("a-secret",), queue=queue).get(timeout=10)
    wait_until(lambda: "succeeded in" in talking.log(), what="the log line")
    wait_until(lambda: "succeeded in" in quiet.log(), what="the log line")
    assert "a-secret" in talking.log()
    assert "a-secret" not in quiet.log()


def test_the_server_that_is_meant_is_that_of_the_app(rsq: Rsq, tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/theirs"
    assert f"not running: {tmp_path}/theirs" in rsq("--url", url, "server", "status").stdout
    assert f"not running: {tmp_path}/theirs" in rsq("server", "status", RSQ_URL=url).stdout
    assert (
        f"was not running: {tmp_path}/mine" in rsq("--url", url, "server", "stop", "--dir", f"{tmp_path}/mine").stdout
    )
    refused = rsq("--url", "redis://localhost", "server", "stop")
    assert (refused.returncode, refused.stderr) == (
        2,
        "rsq: rsq server is about embedded servers, and the app has another one: say which by --dir\n",
    )


# -- what a call emits


def emitting(rsq: Rsq, start_worker: StartWorker, task: str, *arguments: str) -> str:
    """The id of a call that has ended."""
    start_worker(name="tests.integration.output_tasks")
    sent = rsq("-A", "tests.integration.output_tasks", "call", f"tests.integration.output_tasks.{task}", *arguments)
    return sent.stdout.strip()


def test_following_a_call(rsq: Rsq, start_worker: StartWorker) -> None:
    task_id = emitting(rsq, start_worker, "counts", "3")
    done = rsq("result", task_id, "--follow", "--timeout", "30")
    assert (done.returncode, done.stdout, done.stderr) == (0, "0\n1\n2\n3\n", "")
    assert rsq("result", task_id, "--follow", "--after", "1-2").stdout == "2\n3\n"
    first, *_, last = map(json.loads, rsq("result", task_id, "--follow", "--json").stdout.splitlines())
    assert first == {"kind": "Item", "value": 0, "cursor": "1-1", "run": 1}
    assert (last["state"], last["value"]) == ("SUCCESS", 3)


def test_following_a_call_that_fails(rsq: Rsq, start_worker: StartWorker) -> None:
    task_id = emitting(rsq, start_worker, "fails_later", '"\\u001b[2J"')
    done = rsq("result", task_id, "--follow", "--timeout", "30")
    assert done.returncode == 1
    # What would clear the screen is shown.
    assert done.stdout == "'\\x1b[2J'\n"
    assert "FAILURE" in done.stderr


def test_following_a_call_without_a_result(rsq: Rsq, start_worker: StartWorker) -> None:
    task_id = emitting(rsq, start_worker, "keeps_nothing")
    done = rsq("result", task_id, "--follow", "--timeout", "30")
    assert (done.returncode, done.stdout, done.stderr) == (0, "'so far'\n", "succeeded, without a result\n")


def test_following_what_never_comes(rsq: Rsq) -> None:
    assert rsq("result", "x", "-Q", "default", "--follow", "--timeout", "0.1").returncode == 3
    assert "--follow" in one_line(rsq("result", "x", "--after", "1-1"))
    assert "cursor" in one_line(rsq("result", "x", "--follow", "--after", "nonsense"))
