"""Batches as users fill and watch them, in eager mode and with a worker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rsq import App, BatchClosed, ResultTimeout, Signature, Task, chain, chord, group
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.broker.flow_looks import Flow
from rsq.broker.flows import Flows
from rsq.errors import FlowGone, SettingsError
from rsq.flow import filling
from rsq.flow import progress as progress_module
from rsq.flow.filling import NewBatch
from rsq.flow.progress import FlowProgress
from rsq.home import project
from rsq.signals import after_publish, before_publish, task_postrun
from tests.helpers import patience, wait_until

app = App("batches", task_defaults={"max_retries": 0})
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
def breaks(*args: Any) -> None:
    raise Broken("no")


@app.task
def echo(*args: Any) -> list[Any]:
    return list(args)


@app.task(bind=True)
def note(self: Task[..., Any], word: str, *more: Any) -> None:
    noted.append([word, self.request.flow, *more])


@app.task
def grows(depth: int, width: int) -> None:
    """A tree of calls: each adds `width` of the next level."""
    if depth:
        app.batches.current.add(*(grows.s(depth - 1, width) for _ in range(width)))


@app.task
async def agrows(depth: int) -> None:
    if depth:
        await app.batches.current.aadd(agrows.s(depth - 1), add.s(1, 1) | add.s(2))


@app.task
def adds_and_breaks() -> None:
    app.batches.current.add(note.s("never"))
    raise Broken("no")


@app.task(bind=True, max_retries=3, default_retry_delay=0.01)
def adds_at_third(self: Task[..., Any]) -> None:
    app.batches.current.add(note.s("once"))
    if self.request.attempt < 3:
        self.retry()


@app.task
def adds_many(number: int) -> None:
    app.batches.current.add(group(add.s(1, n) for n in range(number)))
    app.batches.current.add(add.s(1, 1))


@app.task
async def aadds_many(number: int) -> None:
    for _ in range(number):
        await app.batches.current.aadd(add.s(1, 1))


@app.task
def adds_many_and_breaks() -> None:
    app.batches.current.add(*(note.s("never") for _ in range(2500)))
    raise Broken("no")


@app.task
def adds_one_that_is_too_large() -> None:
    app.batches.current.add(chord([add.s(1, n) for n in range(1000)], total.s()))


@app.task(bind=True)
def adds_and_becomes(self: Task[..., Any]) -> None:
    app.batches.current.add(add.s(1, 1))
    self.replace(add.s(2, 2))


@app.task(bind=True)
def becomes(self: Task[..., Any], sig: Signature[Any]) -> None:
    self.replace(sig)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    noted.clear()
    monkeypatch.setattr(project, "find", lambda: app)


def telling(**more: Any) -> NewBatch:
    """A batch that tells of all."""
    return app.batch(on_success=note.s("success"), on_complete=note.s("complete"), on_death=note.s("death"), **more)


def words() -> list[str]:
    return sorted(row[0] for row in noted)


def test_all_succeed(mode: str) -> None:
    with telling(description="import") as batch:
        for number in range(10):
            batch.add(add.s(number, 1))
        handle = batch.add(add.s(1, 2) | add.s(3))
        first, second = batch.add(add.s(1, 1), group(add.s(1, 2), add.s(1, 3)))
    progress = batch.wait(timeout=60)
    assert (progress.state, progress.total, progress.done, progress.failed, progress.open) == (
        "succeeded",
        15,
        15,
        0,
        0,
    )
    assert (progress.sealed, progress.abandoned, progress.share) == (True, False, 1.0)
    assert handle.get(timeout=60) == 6
    assert (first.get(timeout=60), second.get(timeout=60)) == (2, [3, 4])
    assert noted == [["complete", batch.id], ["success", batch.id]]
    assert app.batches[batch.id].progress == progress
    assert app.batches[batch.id].description == "import"


@pytest.mark.parametrize("member", [breaks.s(), breaks.s() | add.s(1), chord([breaks.s(), add.s(1, 1)], total.s())])
def test_some_die(mode: str, member: Signature[Any]) -> None:
    with telling() as batch:
        batch.add(add.s(1, 1), member, member.clone())
    progress = batch.wait(timeout=60)
    assert progress.state == "failed"
    assert progress.done + progress.failed == progress.total
    assert words() == ["complete", "death"]


def test_an_empty_one(mode: str) -> None:
    with telling() as batch:
        pass
    progress = batch.wait(timeout=60)
    assert (progress.state, progress.total, progress.share) == ("succeeded", 0, 1.0)
    assert words() == ["complete", "success"]


def test_it_is_awaited(mode: str) -> None:
    async def run() -> Any:
        async with app.batch(on_complete=note.s("complete")) as batch:
            handle = await batch.aadd(add.s(1, 1))
            await batch.aadd(*(add.s(n, n) for n in range(2000)))
            await batch.aadd(breaks.s())
        progress = await batch
        assert await handle.aget(timeout=60) == 2
        await app.aclose()
        return progress

    progress = asyncio.run(run())
    assert (progress.state, progress.total, progress.failed) == ("failed", 2002, 1)
    assert words() == ["complete"]


def test_members_add_members(mode: str) -> None:
    with telling() as batch:
        batch.add(grows.s(3, 5))
    progress = batch.wait(timeout=60)
    assert (progress.total, progress.done) == (1 + 5 + 25 + 125, 156)
    assert words() == ["complete", "success"]


def test_coroutines_add_canvases(mode: str) -> None:
    with telling() as batch:
        batch.add(agrows.s(4))
    progress = batch.wait(timeout=60)
    assert (progress.total, progress.done) == (5 + 4 * 2, 13)
    assert words() == ["complete", "success"]


def test_only_what_succeeds_adds(mode: str) -> None:
    with telling() as batch:
        batch.add(adds_and_breaks.s(), adds_at_third.s())
    progress = batch.wait(timeout=60)
    assert (progress.total, progress.failed) == (3, 1)
    assert words() == ["complete", "death", "once"]


@pytest.mark.parametrize("task", [adds_many, aadds_many])
def test_one_call_adds_many(mode: str, task: Task[..., Any]) -> None:
    with telling() as batch:
        batch.add(task.s(2100))
    progress = batch.wait(timeout=patience(60))
    assert (progress.state, progress.total - (task is adds_many)) == ("succeeded", 2101)
    assert words() == ["complete", "success"]


def test_one_that_adds_many_and_fails_adds_nothing(mode: str) -> None:
    with telling() as batch:
        batch.add(adds_many_and_breaks.s())
    progress = batch.wait(timeout=60)
    assert (progress.total, progress.failed) == (1, 1)
    assert words() == ["complete", "death"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_block_cancels_it(mode: str, kind: type[BaseException]) -> None:
    batch = telling()

    def fill() -> None:
        with batch:
            batch.add(*(add.s(1, n) for n in range(10)))
            raise kind

    with pytest.raises(kind):
        fill()
    progress = batch.wait(timeout=60)
    assert (progress.state, progress.total) == ("cancelled", 0)
    assert noted == []
    with pytest.raises(BatchClosed):
        app.batches[batch.id].add(add.s(1, 1))


def test_it_is_cancelled_while_it_is_filled(mode: str) -> None:
    with pytest.raises(BatchClosed, match="takes no more calls"), telling() as batch:
        assert app.batches[batch.id].cancel()
        batch.add(add.s(1, 1))
    assert batch.progress.state == "cancelled"
    assert noted == []


def test_others_add_while_it_is_open(mode: str) -> None:
    with telling() as batch:
        app.batches[batch.id].add(group(add.s(1, n) for n in range(1500)))
        assert batch.progress.total == 1500
        assert not batch.progress.sealed
    assert batch.wait(timeout=60).done == 1500
    with pytest.raises(BatchClosed, match=f"batch {batch.id} takes no more calls"):
        app.batches[batch.id].add(add.s(1, 1))


def test_in_a_chain(mode: str) -> None:
    """What comes before goes to each member; what comes behind gets the summary."""
    batch = telling().s(add.s(1), grows.si(1, 3), breaks.s())
    handle = (add.s(1, 1) | batch | echo.s("next")).delay()
    summary, word = handle.get(timeout=60)
    assert word == "next"
    assert {name: summary[name] for name in ("total", "done", "failed")} == {"total": 6, "done": 5, "failed": 1}
    wait_until(lambda: len(noted) == 2, 60, "the callbacks")
    assert noted == [["death", summary["id"]], ["complete", summary["id"]]]
    assert app.batch().s().delay().get(timeout=60)["total"] == 0
    whole = group(app.batch().s(add.s(1, 1)), app.batch(on_success=note.s("good")).s(add.s(1, 2))) | echo.s()
    ((one, other),) = whole.delay().get(timeout=60)
    assert (one["done"], other["done"]) == (1, 1)


def test_a_death_is_told_to_the_batches_around(mode: str) -> None:
    """Though the step in which it dies succeeds."""
    inner = app.batch(on_death=note.s("inner")).s(breaks.si(), add.si(1, 1))
    with telling() as batch:
        batch.add(add.s(1, 1) | inner)
    progress = batch.wait(timeout=60)
    assert (progress.state, progress.total, progress.done, progress.failed) == ("succeeded", 2, 2, 0)
    assert words() == ["complete", "death", "inner", "success"]


def test_signals(mode: str) -> None:
    sent: list[Any] = []

    def before(sender: str, flow: str, **rest: Any) -> None:
        sent.append(("before", sender.rpartition(".")[2], flow))

    def after(sender: str, flow: str, **rest: Any) -> None:
        sent.append(("after", sender.rpartition(".")[2], flow))

    def ended(sender: Any, state: str, flow: str, **rest: Any) -> None:
        sent.append((state, sender.name.rpartition(".")[2], flow))

    before_publish.connect(before)
    after_publish.connect(after)
    task_postrun.connect(ended)
    try:
        with app.batch(on_complete=note.s("complete")) as batch:
            batch.add(add.s(1, 1))
        batch.wait(timeout=60)
        wait_until(lambda: len(sent) == 5, 60, "all signals")
    finally:
        before_publish.disconnect(before)
        after_publish.disconnect(after)
        task_postrun.disconnect(ended)
    told = [("before", "note"), ("before", "add"), ("after", "add"), ("SUCCESS", "add"), ("SUCCESS", "note")]
    assert sorted(sent) == sorted((*each, batch.id) for each in told)


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"on_success": add}, r"on_success takes signatures, write add\.s"),
            ({"on_death": chain(add.s(1, 1), add.s(2))}, "on_death is the signature of one task"),
            ({"on_complete": add.s(1, 1).on_error(note.s("x"))}, "on_complete is the signature of one task"),
            ({"description": 3}, "the description of a batch is a text"),
        ],
        ids=repr,
    )
    def test_of_a_batch(self, given: Any, text: str) -> None:
        with pytest.raises(SettingsError, match=text):
            app.batch(**given)

    def test_what_is_added(self, mode: str) -> None:
        """Nothing of it is added, and the block goes on."""
        with telling() as batch:
            for given, error in ((3, SettingsError), (add.s(1), TypeError), (add.s(1, 1) | add.s(1, 2), TypeError)):
                with pytest.raises(error):
                    batch.add(given)
            batch.add(add.s(1, 1))
        assert batch.wait(timeout=60).total == 1

    def test_a_canvas_that_is_too_large(self, mode: str) -> None:
        with telling() as batch:
            with pytest.raises(SettingsError, match="a canvas of 1,003 calls cannot be added to a batch or chord"):
                batch.add(chord([add.s(1, n) for n in range(1002)], total.s()))
            batch.add(chord([add.s(1, n) for n in range(900)], total.s()), add.s(1, 2) | add.s(3))
            batch.add(chord([add.s(1, n) for n in range(900)], total.s()))
        assert batch.wait(timeout=patience(60)).done == 901 + 2 + 901

    def test_out_of_its_block(self, mode: str) -> None:
        batch = telling()
        with pytest.raises(BatchClosed, match="is filled inside of its block"):
            batch.add(add.s(1, 1))
        with batch:
            pass
        with pytest.raises(BatchClosed, match="is filled inside of its block"):
            batch.add(add.s(1, 1))
        with pytest.raises(SettingsError, match="filled by one block"):
            batch.__enter__()

    def test_a_piece_that_is_too_large_from_inside(self, mode: str) -> None:
        with telling() as batch:
            handle = batch.add(adds_one_that_is_too_large.s())
        with pytest.raises(
            SettingsError, match="a canvas of 1,001 calls cannot be added to a batch or chord in one piece"
        ):
            handle.get(timeout=60)
        assert batch.wait(timeout=60).total == 1

    def test_one_that_adds_and_is_replaced(self, mode: str) -> None:
        with telling() as batch:
            handle = batch.add(adds_and_becomes.s())
        with pytest.raises(SettingsError, match="has added calls to its batch"):
            handle.get(timeout=60)

    def test_a_call_that_is_part_of_another_flow(self, mode: str) -> None:
        """Such as a chain, or what takes the place of a member."""
        for handle in ((grows.s(1, 1) | add.si(1, 1)).delay(), becomes.delay(grows.s(1, 1))):
            with pytest.raises(SettingsError, match="part of no batch"):
                handle.get(timeout=60)
        with telling() as batch:
            batch.add(becomes.s(add.s(1, 1) | grows.si(1, 1)))
        assert batch.wait(timeout=60).failed == 1

    def test_there_is_no_batch(self, mode: str) -> None:
        with pytest.raises(SettingsError, match="part of no batch"):
            _ = app.batches.current
        with pytest.raises(FlowGone, match="batch nobody is not on the server"):
            _ = app.batches["nobody"].progress
        with pytest.raises(BatchClosed):
            app.batches["nobody"].add(add.s(1, 1))
        with pytest.raises(SettingsError):
            _ = app.batches["no id"]


class TestWorker:
    """What takes a server, and time."""

    def test_very_many(self, url: str) -> None:
        with app.testing.worker(url=url):
            with telling() as batch:
                for number in range(20_000):
                    batch.add(add.s(number, 1))
            assert batch.wait(timeout=120).done == 20_000
            assert words() == ["complete", "success"]

    def test_threads_fill_one(self, url: str) -> None:
        with app.testing.worker(url=url):
            with telling() as batch:
                threads = [
                    threading.Thread(target=lambda: [batch.add(add.s(1, n)) for n in range(2000)]) for _ in range(4)
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            assert batch.wait(timeout=120).done == 8000

    def test_its_block_keeps_it_open_and_sends_what_waits(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(filling, "LEASE_MS", 300)
        with app.testing.worker(url=url):
            with telling() as batch:
                handle = batch.add(add.s(1, 1))
                assert handle.get(timeout=60) == 2
                score = self.deadline(batch)
                wait_until(lambda: self.deadline(batch) > score + 600, 60, "renewals")
                batch.add(add.s(1, 2))
            progress = batch.wait(timeout=60)
        assert (progress.done, progress.abandoned) == (2, False)
        assert words() == ["complete", "success"]

    def test_a_block_that_is_gone(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """What it has sent runs; that not all of it was sent is told."""
        monkeypatch.setattr(filling, "LEASE_MS", 300)
        monkeypatch.setattr(NewBatch, "_keep", lambda self: None)
        with app.testing.worker(url=url):
            batch = telling().__enter__()
            batch.add(group(add.s(1, n) for n in range(1001)))
            progress = app.batches[batch.id].wait(timeout=60)
            assert (progress.done, progress.sealed, progress.abandoned) == (1000, True, True)
            assert words() == ["complete", "death", "success"]
            with pytest.raises(BatchClosed):
                batch.add(group(add.s(1, n) for n in range(1000)))

    def test_dead_letters_are_sent_again(self, url: str) -> None:
        failing = [True]

        @app.task(name="mends")
        def mends() -> None:
            if failing[0]:
                raise Broken("yet")

        with app.testing.worker(url=url):
            with telling() as batch:
                batch.add(mends.s(), add.s(1, 1))
            assert batch.wait(timeout=60).failed == 1
            failing[0] = False
            queue = app.client.queue(None)
            with app.client.link() as link:
                (letter,) = dead_letters(link, queue)
                redrive(link, queue, letter)
            wait_until(lambda: batch.progress.state == "succeeded", 60, "success")
            assert words() == ["complete", "death", "success"]

    @pytest.mark.parametrize("how", ["wait", "await"])
    def test_who_waits_hears_of_the_end(self, url: str, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
        """Nobody looks again and again: if it were not told, it would take an hour."""
        monkeypatch.setattr(progress_module, "LOOK_S", 3600.0)
        looks: list[str] = []

        def counted(flows: Flows, flow_id: str, look: Callable[[Flows, str], Flow | None] = Flows.look) -> Flow | None:
            looks.append(flow_id)
            return look(flows, flow_id)

        monkeypatch.setattr(Flows, "look", counted)

        async def awaited() -> FlowProgress:
            return await app.batches[batch.id]

        with app.testing.worker(url=url), ThreadPoolExecutor(1) as beside:
            with telling() as batch:
                batch.add(add.s(1, 1))
                if how == "wait":
                    waits = beside.submit(app.batches[batch.id].wait)
                else:
                    waits = beside.submit(asyncio.run, awaited())
                wait_until(lambda: looks, 60, "a look")
            assert waits.result(timeout=60).state == "succeeded"
        assert len(looks) < 10

    def test_it_is_waited_for_in_vain(self, url: str) -> None:
        with app.testing.isolated(url), telling() as batch:
            batch.add(add.s(1, 1))
            with pytest.raises(ResultTimeout, match=f"flow {batch.id} has not ended within 0.1 s"):
                batch.wait(timeout=0.1)

    @staticmethod
    def deadline(batch: NewBatch) -> float:
        (score,) = app.client.ask(("ZSCORE", f"{{{app.settings.namespace}:0}}::flows", batch.id))
        return float(score)
