"""The one way out of the command line: nothing else in rsq prints.

What the server tells was written by others: control characters, and those that turn the direction of a text, are shown
as escapes, so that they neither reach the terminal nor forge a line. Line breaks are kept by `block` alone.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

import click

EXIT_NO = 1
"""The command's own "no", and an output that cannot be written."""
EXIT_USAGE = 2
EXIT_BROKER = 4
EXIT_INTERRUPTED = 130

# C0 and C1 controls, DEL, line and paragraph separators, and the marks and overrides of direction.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_OUTPUT_IS_GONE = {errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def escaped(value: object) -> str:
    """One line, as safe on a terminal as it is to read: `\\x1b[2J` for what would clear the screen."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), str(value))


def prepare() -> None:
    """At the start: a character that the output's encoding does not have is shown as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


# -- what a command says


def say(*lines: object, err: bool = False) -> None:
    """Print lines: each value is one, and one line break after it is all that it gets.

    err  to standard error, where everything goes that is not data
    """
    _write("".join(f"{escaped(line)}\n" for line in lines), err)


def block(text: str, *, err: bool = False) -> None:
    """Print a text of several lines, such as a traceback."""
    say(*text.expandtabs().splitlines(), err=err)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> None:
    """Print columns as wide as they need to be; `right` names those that are aligned to the right."""
    cells = [list(titles), *([escaped(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(
            value.rjust(width) if i in right else value.ljust(width)
            for i, (value, width) in enumerate(zip(row, widths, strict=True))
        )
        say(line.rstrip())


def document(value: object) -> None:
    """Print one JSON document. What JSON cannot carry is shown in a way that it can:

    NaN and infinity as null, bytes as text, tuples and sets as lists, integers beyond what Python prints as hexadecimal
    text, keys that are no text as their JSON; a map whose keys would fall together as a list of pairs; all else as
    `str` shows it.
    """
    _print_json(value, 2)


def record(value: object) -> None:
    """Print one JSON document on a line of its own, as `document` does."""
    _print_json(value, None)


def _print_json(value: object, indent: int | None) -> None:
    text = json.dumps(_plain(value), indent=indent, allow_nan=False)
    _write(text.replace("\x7f", "\\u007f") + "\n", err=False)


def fail(*lines: object, code: int = EXIT_USAGE) -> NoReturn:
    """Say on standard error why the command cannot do what it was told, and end it."""
    say(*(f"rsq: {line}" if number == 0 else line for number, line in enumerate(lines)), err=True)
    raise SystemExit(code)


def confirm(question: str) -> None:
    """Ask on the terminal; whatever is not a yes ends the command with exit code 1."""
    _write(f"{escaped(question)} [y/N]: ", err=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if not answer:
        fail("nobody is there to answer: give --yes", code=EXIT_NO)
    if answer.strip().lower() not in ("y", "yes"):
        fail("nothing was done", code=EXIT_NO)


@contextmanager
def progress(label: str, length: int, *, err: bool = False) -> Iterator[Callable[[int, str], None]]:
    """A bar that moves when it is given how much is done, and what is at work; on no terminal just its label."""
    with click.progressbar(
        length=length,
        label=label,
        width=24,  # the whole line fits into 80 columns
        show_eta=False,
        show_pos=True,
        item_show_func=lambda note: note,
        file=sys.stderr if err else sys.stdout,
    ) as bar:
        yield lambda done, note: bar.update(done - bar.pos, note)


def shown(value: object) -> str:
    """A value as Python shows it, whatever it holds."""
    try:
        return repr(value)
    except Exception:  # an integer of more digits than Python prints, or a class whose repr fails
        return repr(_plain(value))


# -- the end of a command


def interrupted(*lines: object) -> NoReturn:
    """End the command after Ctrl-C. Another one ends it on the spot."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    say(*(["", *lines] if on_terminal else lines), err=True)  # the terminal has shown ^C
    raise SystemExit(EXIT_INTERRUPTED)


@contextmanager
def ending() -> Iterator[None]:
    """Around everything: a help text that cannot be written ends the process without a traceback, too."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OUTPUT_IS_GONE or error.filename is not None:
            raise
        _give_up(sys.stdout, error)


def _write(text: str, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    if stream is None:
        return  # closed by whoever started the command, who wants to hear nothing
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        _give_up(stream, error)


def _give_up(stream: TextIO, error: OSError) -> NoReturn:
    """End the command, with a line about it unless the reader just had enough, as `head` has."""
    with suppress(OSError, ValueError):
        # Nobody gets what is left in the buffer: else Python would try again when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if stream is not sys.stderr and not isinstance(error, BrokenPipeError):
        say(f"rsq: the output cannot be written: {error.strerror}", err=True)
    raise SystemExit(EXIT_NO)


# -- values as JSON


def _plain(value: object) -> Any:
    """The same as JSON can carry it."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return _digits(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "replace")
    if isinstance(value, Mapping):
        pairs = [(_key(key), _plain(each)) for key, each in value.items()]
        named = dict(pairs)
        return named if len(named) == len(pairs) else [list(pair) for pair in pairs]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(each) for each in value]
    try:
        return str(value)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def _key(key: object) -> str:
    plain = _plain(key)
    return plain if isinstance(plain, str) else json.dumps(plain)


def _digits(number: int) -> int | str:
    try:
        str(number)
    except ValueError:
        return hex(number)
    return number
