"""`self.replace`: another call, or a whole canvas, takes the place of the running one; eagerly and with a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from rsq import App, Signature, State, Task, TaskRevoked, chain, chord, group, signature
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.errors import SettingsError
from rsq.signals import before_publish, task_postrun
from tests.helpers import wait_until
from tests.modes import MODES, noted_in, running

app = App("replacing", task_defaults={"max_retries": 0})
noted: list[Any] = []


class Broken(Exception):
    pass


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def echo(*args: Any) -> list[Any]:
    return list(args)


@app.task
def breaks(*args: Any) -> None:
    raise Broken("no")


@app.task(queue="side", ignore_result=True)
def elsewhere(a: int) -> int:
    return a * 100


@app.task(bind=True)
def who(self: Task[..., Any], *args: Any) -> list[Any]:
    return [self.request.id, self.request.parent, self.request.root]


@app.task
def note(*args: Any) -> None:
    noted.append(list(args))


@app.task
def note_error(request: Any, exc: BaseException, traceback: str) -> None:
    noted.append([request.id, type(exc), str(exc)])


@app.task(bind=True)
def becomes(self: Task[..., Any], sig: Signature[Any]) -> Any:
    self.replace(sig)


@app.task(bind=True)
def becomes_behind(self: Task[..., Any], value: int, sig: Signature[Any]) -> Any:
    self.replace(sig.clone((value,)))


@app.task(bind=True)
async def abecomes(self: Task[..., Any], sig: Signature[Any]) -> Any:
    await asyncio.sleep(0)
    self.replace(sig)


@app.task(bind=True, max_retries=3, default_retry_delay=0.01)
def becomes_late(self: Task[..., Any], sig: Signature[Any]) -> Any:
    if self.request.attempt < 3:
        self.retry()
    self.replace(sig)


@app.task(bind=True)
def down_to(self: Task[..., Any], n: int) -> Any:
    if n:
        self.replace(self.s(n - 1))
    return "there"


@app.task(bind=True, ignore_result=True)
def says_nothing(self: Task[..., Any], sig: Signature[Any]) -> Any:
    self.replace(sig)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    noted.clear()
    with running(app, request) as mode:
        yield mode


noted_after = partial(noted_in, noted, add.s(1, 1))


@pytest.mark.parametrize(
    ("sig", "value"),
    [
        (add.s(2, 2), 4),
        (add.s(2, 2) | add.s(3), 7),
        (group(add.s(1, 1), add.s(2, 2)), [2, 4]),
        (group([]), []),
        (chain(add.s(1, 1), group(add.s(1), add.s(2))), [3, 4]),
        (chord([add.s(1, 1), add.s(2, 2)], total.s()), 6),
        (elsewhere.s(3), 300),
        (add.s(1, 2) | elsewhere.s(), 300),
        (signature(add.name, (2, 3), queue="side"), 5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("task", [becomes, abecomes], ids=repr)
def test_its_value_is_that_of_what_stands_for_it(mode: str, task: Any, sig: Signature[Any], value: Any) -> None:
    """Whatever that is, and wherever it goes."""
    assert task.delay(sig).get(timeout=60) == value
    assert (task.s(sig) | echo.s("next")).delay().get(timeout=60) == [value, "next"]
    row = group(task.s(sig), add.s(1, 0)) | echo.s()
    assert row.delay().get(timeout=60) == [[value, 1]]


def test_it_keeps_its_id_and_where_it_comes_from(mode: str) -> None:
    handle = (who.s() | becomes_behind.s(who.si())).delay()
    assert handle.parent is not None
    first = handle.parent.get(timeout=60)
    assert handle.get(timeout=60) == [handle.id, handle.parent.id, first[0]]
    assert who.apply().get()[1] is None
    alone = becomes.delay(who.s())
    assert alone.get(timeout=60)[:2] == [alone.id, None]


def test_what_follows_it_follows_what_stands_for_it(mode: str) -> None:
    sig = becomes.s(add.s(1, 2) | add.s(4))
    sig.link(note.s("linked"))
    sig.link_error(note_error.s())
    assert sig.delay().get(timeout=60) == 7
    assert noted_after(1) == [[7, "linked"]]


@pytest.mark.parametrize("sig", [breaks.s(), breaks.s() | add.s(1), group(breaks.s(), add.s(1, 1))], ids=repr)
def test_what_stands_for_it_fails(mode: str, sig: Signature[Any]) -> None:
    """Its errbacks hear of it under its own id, once; what waits for it never runs."""
    first = becomes.s(sig).on_error(note_error.s())
    handle = (first | note.s("never")).delay()
    assert handle.parent is not None
    with pytest.raises(Broken):
        handle.get(timeout=60)
    with pytest.raises(Broken):
        handle.parent.get(timeout=60)
    assert noted_after(1) == [[handle.parent.id, Broken, "no"]]


def test_a_chord_whose_members_replace_themselves(mode: str) -> None:
    header = [becomes.s(group(add.s(n, n), add.s(n, 1))) for n in range(20)]
    handle = chord(header, echo.s()).delay()
    assert handle.get(timeout=60) == [[[n + n, n + 1] for n in range(20)]]


def test_the_body_of_a_chord_replaces_itself(mode: str) -> None:
    handle = chord([add.s(1, 1), add.s(2, 2)], becomes_behind.s(total.s())).delay()
    assert handle.get(timeout=60) == 6


def test_after_retries(mode: str) -> None:
    assert becomes_late.delay(add.s(1, 2)).get(timeout=60) == 3


def test_again_and_again(mode: str) -> None:
    assert down_to.delay(100).get(timeout=60) == "there"
    with pytest.raises(ValueError, match="replaced 100 times in a row"):
        down_to.delay(101).get(timeout=60)


def test_one_that_gives_no_result(mode: str) -> None:
    """What stands for it gives none, either; the chain has the value."""
    assert (says_nothing.s(add.s(1, 2)) | add.s(1)).delay().get(timeout=60) == 4


def test_with_callbacks_of_its_own(mode: str) -> None:
    sig = add.s(1, 2)
    sig.link(note.s("inner"))
    assert becomes.delay(sig).get(timeout=60) == 3
    assert noted_after(1) == [[3, "inner"]]


def test_signals(mode: str) -> None:
    """Its calls are told of before they are sent; the run that ended so is neither a success nor a failure."""
    sent, ended = [], []

    def note_sent(sender: str, task_id: str, **rest: Any) -> None:
        sent.append(sender.rpartition(".")[2])

    def note_end(sender: Any, state: str, **rest: Any) -> None:
        ended.append((sender.name.rpartition(".")[2], state))

    before_publish.connect(note_sent)
    task_postrun.connect(note_end)
    try:
        becomes.delay(add.s(1, 2) | add.s(3)).get(timeout=60)
        wait_until(lambda: len(ended) == 3, 60, "the end")
    finally:
        before_publish.disconnect(note_sent)
        task_postrun.disconnect(note_end)
    assert sent == ["becomes", "add", "add"]
    assert ended == [("becomes", "IGNORED"), ("add", "SUCCESS"), ("add", "SUCCESS")]


class TestBadInput:
    def test_called_directly(self) -> None:
        with pytest.raises(SettingsError, match=r"self\.replace\(\) is about the call that runs, and none does"):
            becomes(add.s(1, 1))

    @pytest.mark.parametrize(
        ("given", "text"),
        [
            (3, r"self\.replace takes signatures"),
            ({"task": "x"}, r"Signature\.from_dict"),
            (add.s(1, 2).set(debounce=1), "debounce"),
            (add.s(1, 2).on_error(add.s(1) | add.s(1)), "an errback is the signature of one task"),
        ],
        ids=["number", "dict", "debounce", "errback"],
    )
    def test_by_what_is_none(self, mode: str, given: Any, text: str) -> None:
        with pytest.raises(SettingsError, match=text):
            becomes.delay(given).get(timeout=60)

    def test_by_arguments_that_do_not_fit(self, mode: str) -> None:
        with pytest.raises(TypeError, match="too many positional arguments"):
            becomes.delay(add.s(1, 2, 3)).get(timeout=60)


class TestWorker:
    """What only a server has."""

    def test_its_dead_letter_is_redriven(self, url: str) -> None:
        failing = [True]

        @app.task(name="mends")
        def mends() -> int:
            if failing[0]:
                raise Broken("yet")
            return 5

        with app.testing.worker(url=url) as worker:
            handle = (becomes.s(mends.s() | add.s(1)) | add.s(10)).delay()
            with pytest.raises(Broken):
                handle.get(timeout=60)
            worker.wait_idle(timeout=60)
            failing[0] = False
            queue = app.client.queue(None)
            with app.client.link() as link:
                (letter,) = dead_letters(link, queue)
                redrive(link, queue, letter)
            worker.wait_idle(timeout=60)
            assert app.AsyncResult(handle.id).get(timeout=60) == 16

    def test_it_is_revoked_with_what_stands_for_it(self, url: str) -> None:
        noted.clear()
        with app.testing.worker(url=url) as worker:
            handle = (becomes.s(add.s(1, 1).set(countdown=600) | add.s(1)) | note.s("never")).delay()
            wait_until(lambda: len(app.client.ask(("KEYS", f"{{{app.settings.namespace}:0}}::flow:*"))[0]) == 2)
            handle.revoke()
            with pytest.raises(TaskRevoked):
                handle.get(timeout=60)
            assert handle.parent is not None
            assert handle.parent.state == State.REVOKED
            worker.wait_idle(timeout=60)
        assert noted == []
