"""`self.add_to_chord`: a member of a chord adds members; eagerly and with a worker."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from rsq import App, Signature, Task, chain, chord, group
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.errors import SettingsError
from rsq.home import project
from rsq.result_group import GroupResult
from tests.helpers import patience
from tests.modes import noted_in

app = App("beside", task_defaults={"max_retries": 0})
noted: list[Any] = []


class Broken(Exception):
    pass


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def echo(*args: Any) -> list[Any]:
    return list(args)


@app.task
def breaks(*args: Any) -> None:
    raise Broken("no")


@app.task
def note(*args: Any) -> None:
    noted.append(list(args))


@app.task
def note_error(request: Any, exc: Exception, traceback: Any) -> None:
    noted.append([request.id, type(exc), str(exc)])


@app.task(bind=True)
def adds(self: Task[..., Any], *sigs: Signature[Any]) -> list[Any]:
    """Gives the ids of what it adds."""
    return [self.add_to_chord(sig).id for sig in sigs]


@app.task(bind=True)
async def aadds(self: Task[..., Any], sig: Signature[Any]) -> str:
    self.add_to_chord(sig)
    return "added"


@app.task(bind=True)
def counts_down(self: Task[..., Any], number: int) -> int:
    if number:
        self.add_to_chord(self.s(number - 1))
    return number


@app.task(bind=True, max_retries=3, default_retry_delay=0.01)
def adds_at_third(self: Task[..., Any]) -> str:
    self.add_to_chord(echo.s(self.request.attempt))
    if self.request.attempt < 3:
        self.retry()
    return "done"


@app.task(bind=True)
def becomes(self: Task[..., Any], sig: Signature[Any]) -> None:
    self.replace(sig)


@app.task(bind=True)
def adds_and_becomes(self: Task[..., Any]) -> None:
    self.add_to_chord(add.s(1, 1))
    self.replace(add.s(2, 2))


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    noted.clear()
    monkeypatch.setattr(project, "find", lambda: app)


noted_after = partial(noted_in, noted, add.s(1, 1))


def test_its_value_comes_last(mode: str) -> None:
    ids, *rest = chord([adds.s(add.s(1, 1), add.s(2, 2)), add.s(3, 3)], echo.s()).delay().get(timeout=60)[0]
    assert rest == [6, 2, 4]
    assert [app.AsyncResult(task_id).get(timeout=60) for task_id in ids] == [2, 4]


def test_the_only_member_adds(mode: str) -> None:
    assert chord([aadds.s(add.s(1, 1))], echo.s()).delay().get(timeout=60) == [["added", 2]]


def test_what_is_added_adds_itself(mode: str) -> None:
    assert chord([counts_down.s(20)], echo.s()).delay().get(timeout=60) == [[*range(20, -1, -1)]]


@pytest.mark.parametrize(
    ("sig", "values"),
    [
        (add.s(1, 1) | add.s(10), [12]),
        (group(add.s(1, 1), add.s(2, 2)), [2, 4]),
        (group(add.s(n, n) for n in range(3)) | echo.s(), [[[0, 2, 4]]]),
        (group(), []),
    ],
    ids=["chain", "group", "chord", "nothing"],
)
def test_a_canvas_is_added(mode: str, sig: Signature[Any], values: list[Any]) -> None:
    (_, *rest) = chord([adds.s(sig)], echo.s()).delay().get(timeout=60)[0]
    assert rest == values


def test_a_body_that_is_a_group(mode: str) -> None:
    """Each of its members gets what was added."""
    handle = (group(aadds.s(add.s(1, 1)), add.s(2, 2)) | group(echo.s(), echo.s(5))).delay()
    assert handle.get(timeout=60) == [[["added", 4, 2]], [["added", 4, 2], 5]]


def test_attempts_that_fail_add_nothing(mode: str) -> None:
    assert chord([adds_at_third.s()], echo.s()).delay().get(timeout=60) == [["done", [3]]]


def test_one_that_was_replaced_adds_to_its_chord(mode: str) -> None:
    """What takes its place has its place."""
    handle = chord([becomes.s(becomes.s(aadds.s(add.s(1, 1)))), add.s(2, 2)], echo.s()).delay()
    assert handle.get(timeout=60) == [["added", 4, 2]]


def test_what_is_added_is_replaced(mode: str) -> None:
    handle = chord([aadds.s(becomes.s(group(add.s(1, 1), add.s(2, 2))))], echo.s()).delay()
    assert handle.get(timeout=60) == [["added", [2, 4]]]


def test_one_call_adds_many(mode: str) -> None:
    """More than a page: all values come, in this order."""
    result = chord([adds.s(group(add.s(1, n) for n in range(1200)), add.s(0, 0)), add.s(5, 5)], echo.s()).delay()
    [[ids, five, *values]] = result.get(timeout=patience(60))
    assert (len(ids), five, values) == (2, 10, [*range(1, 1201), 0])


def test_in_a_batch(mode: str) -> None:
    """Members of a batch, and of a chord in it, side by side."""
    with app.batch() as batch:
        handle = batch.add(chord([aadds.s(add.s(1, 1)), add.s(2, 2)], echo.s()))
    assert handle.get(timeout=60) == [["added", 4, 2]]
    assert batch.wait(timeout=60).done == 4


@pytest.mark.parametrize("where", ["body", "chord", "whole"])
@pytest.mark.parametrize("told", [True, False])
def test_what_is_added_fails(mode: str, where: str, told: bool) -> None:
    """The body fails with it; errbacks of what fails hear of that, once; those of the member that added it do not."""
    errback = note_error.s() if told else note.si("told nothing")
    body, header = echo.s(), [aadds.s(add.s(1, 1) | breaks.s()).on_error(note.si("never")), add.s(2, 2)]
    if where == "body":
        body.on_error(errback)
    made = chord(header, body)
    if where == "chord":
        made.on_error(errback)
    whole = chain(made, echo.s())
    if where == "whole":
        whole.on_error(errback)
    handle = whole.delay()
    with pytest.raises(Broken):
        handle.get(timeout=60)
    failed = handle if where == "whole" else handle.parent
    assert failed is not None
    assert noted_after(1) == [[failed.id, Broken, "no"] if told else ["told nothing"]]


class TestBadInput:
    def test_called_directly(self) -> None:
        with pytest.raises(SettingsError, match=r"self\.add_to_chord\(\) is about the call that runs, and none does"):
            adds(add.s(1, 1))

    @pytest.mark.parametrize(
        "made",
        [
            adds.s(add.s(1, 1)),
            adds.s(add.s(1, 1)) | echo.s(),
            group(adds.s(add.s(1, 1)), add.s(1, 1)),
            chord([chain(adds.s(add.s(1, 1)), echo.s()), add.s(1, 1)], echo.s()),
        ],
        ids=["alone", "chain", "group", "behind"],
    )
    def test_it_is_in_no_chord(self, mode: str, made: Signature[Any]) -> None:
        handle = made.delay()
        with pytest.raises(SettingsError, match=r"is in no chord whose body waits for it: self\.add_to_chord\(\) is"):
            (handle[0] if isinstance(handle, GroupResult) else handle).get(timeout=60)

    def test_what_is_none(self, mode: str) -> None:
        with pytest.raises(SettingsError, match=r"self\.add_to_chord takes signatures"):
            chord([adds.s(3)], echo.s()).delay().get(timeout=60)

    def test_a_piece_that_is_too_large(self, mode: str) -> None:
        made = chord([adds.s(chord([add.s(1, n) for n in range(1000)], echo.s()))], echo.s())
        with pytest.raises(SettingsError, match="a canvas of 1,001 calls cannot be added to a batch or chord in one"):
            made.delay().get(timeout=60)

    def test_it_adds_and_is_replaced(self, mode: str) -> None:
        with pytest.raises(SettingsError, match="has added calls to its batch or chord, which go with its success"):
            chord([adds_and_becomes.s()], echo.s()).delay().get(timeout=60)


def test_its_dead_letter_is_redriven(url: str) -> None:
    failing = [True]

    @app.task(name="mends")
    def mends() -> int:
        if failing[0]:
            raise Broken("yet")
        return 5

    with app.testing.worker(url=url) as worker:
        handle = chord([aadds.s(mends.s()), add.s(1, 1)], echo.s()).delay()
        with pytest.raises(Broken):
            handle.get(timeout=60)
        worker.wait_idle(timeout=60)
        failing[0] = False
        with app.client.link() as link:
            (letter,) = dead_letters(link, app.client.queue(None))
            redrive(link, app.client.queue(None), letter)
        worker.wait_idle(timeout=60)
        assert app.AsyncResult(handle.id).get(timeout=60) == [["added", 2, 5]]
