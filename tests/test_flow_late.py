"""Queues and dedupe keys that are made of what another call brings: the same in eager mode and with a worker."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from rsq import App, GroupResult, Task, TaskRevoked, chain, chord, group
from rsq.broker.dead_letters import dead_letters
from rsq.home import project
from tests.helpers import wait_until

app = App("late", task_defaults={"max_retries": 0})
ran: list[Any] = []


class Broken(Exception):
    pass


def by_size(name: str, args: Any, kwargs: Any, options: Any, task: Any = None) -> str | None:
    """Looks at what is given in several ways, and lets nothing out."""
    try:
        if name == "late.sized":
            number = kwargs["n"] if "n" in kwargs else args[0]
            return "big" if isinstance(number, int) and number > 10 else None
    except Exception:
        return "wrong"
    return None


@app.task(name="late.add")
def add(a: int, b: int) -> int:
    return a + b


@app.task(bind=True, name="late.sized")
def sized(self: Task[..., Any], n: int, word: str = "") -> list[Any]:
    return [self.request.queue, n, word]


@app.task(bind=True, name="late.once", dedupe_key="once {n}", dedupe_ttl=60)
def once(self: Task[..., Any], n: int, word: str = "") -> int:
    ran.append([self.request.id, n, word, dict(self.request.stamps or {})])
    return n


@app.task(name="late.gone", dedupe_key=lambda n: f"gone {n + 1}", ignore_result=True)
def gone(n: int) -> None:
    ran.append(n)


@app.task(name="late.breaks", dedupe_key="breaks {n}", dedupe_until="done")
def breaks(n: int) -> None:
    raise Broken(n)


@app.task(name="late.echo")
def echo(*args: Any, **kwargs: Any) -> list[Any]:
    return [*args, kwargs]


@app.task(name="late.note")
def note(task_id: str, word: str) -> None:
    ran.append([task_id, word])


@pytest.fixture(params=["eager", "worker"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    ran.clear()
    monkeypatch.setattr(project, "find", lambda: app)
    app.routes = by_size
    if request.param == "eager":
        with app.testing.eager(propagate=False):
            yield "eager"
    else:
        with app.testing.worker(url=request.getfixturevalue("url"), queues=["default", "big"]):
            yield "worker"
    app.routes = None


def test_a_key_that_is_made_of_the_value(mode: str) -> None:
    """Whoever comes second is a duplicate of the first."""
    first = (add.s(1, 1) | once.s("first") | add.s(1)).delay()
    assert first.get(timeout=60) == 3
    second = (add.s(2, 0) | once.s("second") | add.s(1)).delay()
    with pytest.raises(TaskRevoked, match="duplicate of"):
        second.get(timeout=60)
    assert (add.s(2, 1) | once.s("third")).delay().get(timeout=60) == 3
    assert [row[1:3] for row in ran] == [[2, "first"], [3, "third"]]
    assert first.parent is not None
    assert first.parent.get(timeout=60) == 2


def test_a_route_that_is_made_of_the_value(mode: str) -> None:
    assert (add.s(1, 1) | sized.s("small")).delay().get(timeout=60) == ["default", 2, "small"]
    assert (add.s(10, 1) | sized.s("large") | echo.s()).delay().get(timeout=60) == [["big", 11, "large"], {}]
    assert (add.s(10, 1) | sized.s().set(queue="default")).delay().get(timeout=60) == ["default", 11, ""]


def test_what_is_seen_from_outside_stays(mode: str) -> None:
    """The id, the stamps; and what is an argument of the call itself."""
    made = chain(add.s(1, 2), once.s(word="w").set(task_id="chosen")).stamp(customer=42)
    result = made.delay()
    assert (result.id, result.get(timeout=60)) == ("chosen", 3)
    wait_until(lambda: ran, 60, "a run")
    assert ran[0][1:] == [3, "w", {"customer": 42}]


def test_in_canvases(mode: str) -> None:
    assert chord([add.s(1, 1) | once.s(), add.s(2, 2) | once.s()], echo.s()).delay().get(timeout=60) == [[2, 4], {}]
    result = (add.s(20, 1) | group(sized.s(), sized.s("b"))).delay()
    assert isinstance(result, GroupResult)
    assert result.get(timeout=60) == [["big", 21, ""], ["big", 21, "b"]]
    (add.s(30, 1).set(link=once.s("link"))).delay().get(timeout=60)
    wait_until(lambda: [31, "link"] in [row[1:3] for row in ran], 60, "the link")


def test_in_a_graph(mode: str) -> None:
    flow = app.flow("late")
    left, right = flow.add(add.s(20, 3), name="left"), flow.add(add.s(1, 1), name="right")
    flow.add(sized.s(), after={"n": left, "word": right}, name="end")
    assert flow.start().get(timeout=60) == {"end": ["big", 23, 2]}


def test_it_gives_no_result(mode: str) -> None:
    (add.s(1, 1) | gone.s()).delay()
    wait_until(lambda: ran, 60, "a run")
    assert ran == [2]


def test_it_fails(mode: str) -> None:
    """Errbacks hear of it under its id; the dead letter is that of the call itself."""
    result = (add.s(1, 1) | breaks.s().on_error(note.s("told"))).delay()
    with pytest.raises(Broken):
        result.get(timeout=60)
    wait_until(lambda: ran, 60, "the errback")
    assert ran == [[result.id, "told"]]
    if mode == "worker":
        with app.client.link() as link:
            assert [letter.task for letter in dead_letters(link, app.client.queue(None))] == ["late.breaks"]


def test_what_is_known_takes_no_detour(mode: str) -> None:
    """An immutable call, and a rule that does not look at what comes."""
    made = chain(add.s(1, 1), once.si(7), add.s(1)).delay()
    assert made.get(timeout=60) == 8
    assert (add.s(1, 1) | add.s(1)).delay().get(timeout=60) == 3
    if mode == "worker":
        assert app.flows[made.id].progress.total == 3
