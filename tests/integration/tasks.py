"""The app that the worker processes of these tests load. What bodies did is written to a file outside Redis."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import math
import os
import re
import signal
import sys
import time
from typing import Any
from uuid import UUID

from rsq import App, Ignore, Reject, Task
from rsq.errors import LeaseLost

app = App("integration", task_defaults={"retry_backoff": 0.05})

JOURNAL = "RSQ_TEST_JOURNAL"


def journal(*words: object) -> None:
    """One line, in one write: what several processes append never mixes."""
    fd = os.open(os.environ[JOURNAL], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, (" ".join(str(word) for word in words) + "\n").encode())
    finally:
        os.close(fd)


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task(bind=True)
def emits(self: Any, number: int) -> None:
    for n in range(number):
        self.emit(n)


@app.task
async def aadd(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


@app.task
def note(word: object) -> object:
    journal("ran", word)
    return word


@app.task
def pass_on(word: str, queue: str) -> None:
    note.apply_async((word,), queue=queue)


@app.task
def gate(path: str, word: str = "gate") -> str:
    """Runs until the file is there."""
    journal("began", word)
    try:
        while not os.path.exists(path):
            time.sleep(0.01)
    except LeaseLost:
        journal("interrupted", word)
        raise
    journal("ended", word)
    return word


@app.task(acks_late=False)
def once_gate(path: str) -> str:
    """The same, acknowledged early."""
    return str(gate.run(path, "once_gate"))


@app.task
async def agate(path: str) -> str:
    """The same as a coroutine."""
    journal("began agate")
    try:
        while not os.path.exists(path):  # noqa: ASYNC110, ASYNC240 - another process makes the file
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        journal("interrupted agate")
        raise
    return "agate"


@app.task(bind=True)
def stubborn(self: Task[..., Any], path: str) -> str:
    """Goes on, whatever happens, and tells what it knows of its lease."""
    journal("began stubborn")
    while not os.path.exists(path):
        with contextlib.suppress(LeaseLost):
            time.sleep(0.01)
    journal("lease lost:", self.request.lease_lost)
    return "stubborn"


@app.task
def deaf(path: str) -> str:
    """Swallows whatever is raised in it, as long as the file is not there."""
    journal("began deaf")
    while not os.path.exists(path):
        try:
            time.sleep(0.01)
        except Exception as error:
            journal("heard", type(error).__name__)
    return "deaf"


@app.task
def hold_gil(seconds: int) -> str:
    """A C call that never lets the GIL go."""
    journal("began", "hold_gil")
    ctypes.PyDLL(None).sleep(seconds)
    return "held"


@app.task(bind=True, max_retries=2)
def flaky(self: Task[..., Any], fail_times: int) -> int:
    journal("attempt", self.request.attempt)
    if self.request.attempt <= fail_times:
        raise ValueError(f"attempt {self.request.attempt}")
    return self.request.attempt


@app.task(bind=True, max_retries=5)
def asks_for_retry(self: Task[..., Any]) -> tuple[int, int]:
    if self.request.retries < 2:
        self.retry(countdown=0.01)
    return self.request.attempt, self.request.retries


@app.task(bind=True)
def waits_for_retry(self: Task[..., Any]) -> None:
    self.retry(countdown=600)


@app.task(max_retries=0)
def raises(kind: str) -> None:
    if kind == "key":
        raise KeyError("missing")
    if kind == "unserialisable":
        raise ValueError("it holds", open("/dev/null"))  # noqa: SIM115 - held by the exception
    if kind == "local":

        class Local(Exception):
            pass

        raise Local("only here")
    if kind == "exit":
        sys.exit(3)
    raise ValueError(f"no such user {kind}")


@app.task
def steer(how: str) -> str:
    if how == "reject":
        raise Reject("not for me")
    if how == "ignore":
        raise Ignore
    return how


@app.task(max_retries=0)
def returns(kind: str) -> object:
    if kind == "odd":
        return {(1, 2): b"x", UUID(int=7): float("nan"), "big": 10**5000}
    return b"x" * 100 * 1024 * 1024 if kind == "huge" else object()


@app.task(bind=True)
def die_until(self: Task[..., Any], crashes: int, how: str = "kill") -> int:
    """Takes its process down until it has crashed so often."""
    journal("attempt", self.request.crashes)
    if self.request.crashes < crashes:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif how == "segv":
            ctypes.string_at(0)
        os._exit(1 if how == "exit one" else 7)
    return self.request.crashes


@app.task(acks_late=False)
def at_most_once(word: str) -> str:
    journal("ran", word)
    if word == "die":
        os._exit(1)
    return word


@app.task(ignore_result=True)
def word(text: str, seconds: float = 0) -> None:
    time.sleep(seconds)
    journal(text)


@app.task
def note_after(before: object, word: object) -> list[object]:
    """A step of a flow: what came before it, and its own word."""
    journal("ran", word)
    return [*before, word] if isinstance(before, list) else [before, word]


@app.task(ignore_result=True)
def quiet(word: object) -> None:
    journal("ran", word)


@app.task
def where() -> int:
    return os.getpid()


@app.task
def spawns(number: int) -> str:
    """Sends calls of its own."""
    note.map_async([(f"child-{i}",) for i in range(number)])
    return "sent"


@app.task(bind=True)
def about(self: Task[..., Any]) -> dict[str, Any]:
    request = self.request
    return {
        "id": request.id,
        "task": request.task,
        "queue": request.queue,
        "priority": request.priority,
        "attempt": request.attempt,
        "headers": dict(request.headers),
        "parent": request.parent,
        "root": request.root,
        "direct": request.called_directly,
    }


@app.task
def measure(payload: str) -> int:
    """Large to send, small to keep."""
    return len(payload)


@app.task
def backtrack(seconds: int) -> str:
    """A regular expression that goes astray for at least so long, and holds the GIL all the while."""
    journal("began", "backtrack")
    pattern, length = re.compile(r"(a+)+b"), 18
    while True:
        began = time.monotonic()
        found = pattern.match("a" * length)
        took_s = time.monotonic() - began
        if took_s >= seconds:
            return "match" if found else "no match"
        # One letter more takes twice the time.
        length += max(1, int(math.log2(seconds / took_s)))


@app.task(bind=True)
def marked(self: Task[..., Any], number: int) -> int:
    """How many crashes are counted against this call."""
    return self.request.crashes


@app.task(max_concurrency=1000)
def limited(number: int) -> int:
    return number


@app.task
def brief(number: int, seconds: float = 0.002) -> int:
    time.sleep(seconds)
    return number


@app.task
def freeze() -> str:
    """Stops its process, with all that it has fetched, until somebody lets it go on."""
    journal("began freeze")
    os.kill(os.getpid(), signal.SIGSTOP)
    return "thawed"


@app.task
def total(numbers: list[int]) -> int:
    """The sum."""
    return sum(numbers)


@app.task
def kinds(values: list[object]) -> list[str]:
    """What they are."""
    return [type(value).__name__ for value in values]


@app.task
def size(value: str) -> int:
    """How long it is."""
    return len(value)


@app.task
def told_all(request: Any, error: Exception, trace: str) -> list[object]:
    """An errback that takes everything."""
    return [request.id, request.task, type(error).__name__, "ValueError" in trace]


@app.task
def told_id(task_id: str) -> str:
    """An errback that takes the id alone."""
    return task_id
