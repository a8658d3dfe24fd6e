"""The way out of the command line: what is escaped, what JSON carries, and outputs that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from rsq.cli import out

BEYOND = 10**5000
"""An integer of more digits than Python prints."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, Größe, 漢字, 😀", "plain, Größe, 漢字, 😀"),
        ("\x1b]0;OWNED\x07\x1b[2J", r"\x1b]0;OWNED\x07\x1b[2J"),
        ("a\r\nb\tc\x00", r"a\r\nb\tc\x00"),
        ("\x7f\x80\x9b31m\x9f", r"\x7f\x80\x9b31m\x9f"),
        ("a\u202eb\u2066c\u2069\u200f\u061c", r"a\u202eb\u2066c\u2069\u200f\u061c"),
        ("a\u2028b\u2029c\x85d", r"a\u2028b\u2029c\x85d"),
    ],
)
def test_control_characters_are_shown_not_obeyed(text: str, shown: str) -> None:
    assert out.escaped(text) == shown


def test_a_line_is_one_line_and_a_block_keeps_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    out.say("one\ntwo", "three")
    out.block("Traceback:\n\tat \x1b[2J work\n")
    out.say("mistake", err=True)
    captured = capsys.readouterr()
    assert captured.out == "one\\ntwo\nthree\nTraceback:\n        at \\x1b[2J work\n"
    assert captured.err == "mistake\n"


def test_no_cell_forges_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    out.table(("TASK", "N"), [("a\nb", 1), ("c", 100)], right=[1])
    assert capsys.readouterr().out == "TASK    N\na\\nb    1\nc     100\n"


def test_a_failure_is_one_line_and_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        out.fail("what\nhappened", code=4)
    assert ended.value.code == 4
    assert capsys.readouterr().err == "rsq: what\\nhappened\n"


class _Breaks:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "carried"),
    [
        ({(1, 2): "pair"}, {"[1, 2]": "pair"}),
        ({UUID(int=1): 1, b"\xff": 2, None: 3, True: 4, 1.5: 5}, None),
        ({1: "a", "1": "b"}, [["1", "a"], ["1", "b"]]),
        ({float("nan"): float("inf")}, {"null": None}),
        ([float("nan"), -float("inf"), 1.5], [None, None, 1.5]),
        ([BEYOND, -BEYOND], [hex(BEYOND), hex(-BEYOND)]),
        ({BEYOND: 1}, {hex(BEYOND): 1}),
        ((b"x", {1}, frozenset([2])), ["x", [1], [2]]),
        (Decimal("1.50"), "1.50"),
        (date(2026, 11, 26), "2026-11-26"),
        (_Breaks(), "<_Breaks that cannot be shown: RuntimeError>"),
        ("\x7f\x1b\udc80\u202e", "\x7f\x1b\udc80\u202e"),
    ],
)
def test_json_carries_everything(capsys: pytest.CaptureFixture[str], value: object, carried: object) -> None:
    out.document(value)
    text = capsys.readouterr().out
    assert text.isascii()
    assert "\x7f" not in text
    assert "\x1b" not in text
    read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    if carried is not None:
        assert read == carried
    else:
        assert list(read) == [str(UUID(int=1)), "\ufffd", "null", "true", "1.5"]


@pytest.mark.parametrize("value", [[BEYOND], {"a": (1, BEYOND)}, {BEYOND: 1}, _Breaks()])
def test_whatever_a_value_holds_it_is_shown(value: object) -> None:
    assert out.shown(value)
    assert out.shown({"a": (1, "b")}) == "{'a': (1, 'b')}"


# -- outputs that fail, as a shell makes them

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A command line of the shell, in which $RSQ is the command and $PY a program of Python that prints by `out`."""
    program = "import sys; from rsq.cli import out; out.prepare(); "
    known = {
        **os.environ,
        "RSQ": f"{sys.executable} -m rsq",
        "PY": f"{sys.executable} -c",
        "SAY": program + "out.say('\\U0001f600 \\u0416', '\\udcff'); out.document({'a': '\\u0416'})",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **env,
    }
    return subprocess.run(["bash", "-c", line], env=known, capture_output=True, text=True, timeout=60, check=False)


needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


@needs_full
@pytest.mark.parametrize("command", ["$RSQ --help", "$RSQ dead --help", '$PY "$SAY"'])
def test_a_full_output_is_one_line(command: str) -> None:
    done = run(f"{command} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "rsq: the output cannot be written: No space left on device\n")


@needs_full
def test_where_nothing_can_be_said_the_code_tells() -> None:
    done = run('$PY "$SAY" > /dev/full 2>&-')
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["$RSQ --help", "$RSQ dead --help", '$PY "$SAY"'])
def test_a_reader_that_has_enough_is_no_error(command: str) -> None:
    # The output is a pipe whose reader is gone before anything is written.
    done = run(f"exec 3> >(:); wait $!; {command} >&3")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&-", "0<&- 1>&- 2>&-"])
def test_closed_outputs_are_no_error(closed: str) -> None:
    done = run(f'$PY "$SAY" {closed}')
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_an_encoding_that_lacks_a_character(encoding: str) -> None:
    done = run('$PY "$SAY"', PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == ("😀 Ж" if encoding == "utf-8" else r"\U0001f600 \u0416")
    assert done.stdout.splitlines()[1] == r"\udcff"


def test_nobody_answers() -> None:
    program = "from rsq.cli import out; out.confirm('Drop all?')"
    for closed in ("</dev/null", "0<&-"):
        done = run(f'$PY "{program}" {closed}')
        assert done.returncode == 1
        assert done.stderr == "Drop all? [y/N]: rsq: nobody is there to answer: give --yes\n"
    done = run(f"echo yes | $PY \"{program}; out.say('dropped')\"")
    assert (done.returncode, done.stdout) == (0, "dropped\n")


def interrupted(arguments: Mapping[str, Any], *command: str) -> subprocess.CompletedProcess[str]:
    """The command, which gets SIGINT as soon as it says that it is at work."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, **arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, rest, error)


def test_ctrl_c_ends_every_command_with_130() -> None:
    program = """
import time
from rsq.cli import main, out
@main.main.command()
def waits():
    out.say("at work")
    time.sleep(60)
main.main(["waits"])
"""
    done = interrupted({"stderr": subprocess.PIPE}, "-c", program)
    assert (done.returncode, done.stderr) == (130, "")
