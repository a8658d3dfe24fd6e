"""Flows whose producer or worker is cut off, or killed, at each step: started once, reported once, released once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from rsq import App, BrokerUnavailable, Signature, TaskRevoked, chain, group
from rsq.broker import scripts
from rsq.broker.scripts import Script
from rsq.flow.batch import Batch
from rsq.flow.filling import NewBatch
from tests.helpers import patience, wait_until
from tests.integration import flow_tasks, tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals
from tests.proxy import Proxy
from tests.servers import Server

FAULTS = ["cut_request", "cut_reply", "truncate_reply"]
PATIENCE_S = 60

MEMBERS = 2500
"""Three pages of the start, and more than one script releases."""


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server) as running:
        yield running


@pytest.fixture
def producer(app: App, proxy: Proxy) -> Iterator[App]:
    """The app, sending through the proxy, with a connection that stands already."""
    app.configure(url=proxy.url, broker_timeout_s=5.0)
    app.client.queue_names()
    yield app
    app.configure(broker_timeout_s=5.0)


def words(journal: Journal) -> list[str]:
    return sorted(line.removeprefix("ran ") for line in journal.lines())


def wide_chord(members: int) -> Signature[list[object]]:
    return group(tasks.note.s(f"m{number}") for number in range(members)) | tasks.note_after.s("body")


@contextmanager
def killed_at(proxy: Proxy, script: Script, fault: str, start: StartWorker) -> Iterator[None]:
    """What is sent in the block is run by a worker that is killed when it calls this script; then by another one."""
    dying = start(worker_url=proxy.url, concurrency=1, lease=2)
    proxy.plan(fault, at=proxy.sha(script))
    yield
    wait_until(lambda: proxy.pending == 0, PATIENCE_S, "the script to be called")
    dying.kill()
    start(concurrency=1, lease=2)


@pytest.mark.parametrize("page", [0, 1, 2], ids=["first", "second", "last"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_start_whose_page_is_lost(
    producer: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, url: str, fault: str, page: int
) -> None:
    whole = wide_chord(MEMBERS)
    # What has come through by then is one request after the other.
    proxy.plan(*["pass_request"] * page, fault, at=proxy.sha(scripts.FLOW))
    result = whole.delay()
    assert proxy.pending == 0
    producer.configure(url=url)
    start_worker()
    wait_until(lambda: settled(producer), PATIENCE_S, "all to have ended")
    assert producer.AsyncResult(result.id, "default").get(timeout=PATIENCE_S) == [
        *(f"m{number}" for number in range(MEMBERS)),
        "body",
    ]
    assert words(journal) == sorted(["body", *(f"m{number}" for number in range(MEMBERS))])
    assert totals(producer).counters["succeeded"] == MEMBERS + 1


def test_a_start_that_gave_up_starts_once_when_it_is_repeated(
    producer: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, url: str
) -> None:
    """Its last page never came: nothing of it runs, until it is started again under its ids."""
    producer.configure(broker_timeout_s=1)
    producer.client.queue_names()
    whole = wide_chord(MEMBERS)
    result = whole.freeze()
    proxy.plan("pass_request", "pass_request", *["cut_request"] * 1000, at=proxy.sha(scripts.FLOW))
    with pytest.raises(BrokerUnavailable, match="started again with the same id it is not doubled"):
        whole.delay()
    producer.configure(url=url)
    start_worker()
    assert settled(producer)
    assert whole.delay().id == result.id
    wait_until(lambda: "ran body" in journal.lines(), PATIENCE_S, "the body")
    wait_until(lambda: settled(producer), PATIENCE_S, "all to have ended")
    assert words(journal) == sorted(["body", *(f"m{number}" for number in range(MEMBERS))])


def nested() -> Signature[list[object]]:
    """Each step of it releases something: a chain, a group behind it, a join, a group, a body."""
    first = group(chain(tasks.note.si(f"a{number}"), tasks.note_after.s(f"b{number}")) for number in range(5))
    second = group(tasks.note_after.s(f"c{number}") for number in range(5))
    return first | second | tasks.note_after.s("end")


NESTED = sorted([f"{letter}{number}" for letter in "abc" for number in range(5)] + ["end"])


@pytest.mark.parametrize("fault", FAULTS)
def test_reports_whose_requests_and_replies_are_lost(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    start_worker(worker_url=proxy.url, concurrency=1)
    for number in range(5):
        proxy.plan(fault, at=proxy.sha(scripts.COMPLETE))
        result = nested().delay()
        assert isinstance(result.get(timeout=PATIENCE_S), list)
        wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
        assert proxy.pending == 0
        assert words(journal) == sorted(NESTED * (number + 1))
    assert totals(app).counters["succeeded"] == 5 * len(NESTED)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_left_to_be_released_when_requests_and_replies_are_lost(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    start_worker(worker_url=proxy.url, concurrency=1)
    proxy.plan(*[fault] * 3, at=proxy.sha(scripts.GO_ON))
    result = chain(
        tasks.note.s("first"),
        group(tasks.note_after.s(f"m{number}") for number in range(1000)),
        tasks.note_after.s("last"),
    ).delay()
    assert len(result.get(timeout=PATIENCE_S)) == 1001
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    assert proxy.pending == 0
    assert words(journal) == sorted(["first", "last", *(f"m{number}" for number in range(1000))])


@pytest.mark.parametrize("fault", ["hold_request", "stall_reply"], ids=["before", "after"])
@pytest.mark.parametrize("script", [scripts.COMPLETE, scripts.GO_ON], ids=lambda script: script.name)
def test_a_worker_that_is_killed_as_it_reports_or_releases(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, script: Script, fault: str
) -> None:
    """Before the script ran its bodies run again, elsewhere; after it nothing does. What follows runs once."""
    with killed_at(proxy, script, fault, start_worker):
        result = chain(
            tasks.note.s("first"),
            group(tasks.note_after.s(f"m{number}") for number in range(500)),
            tasks.note_after.s("last"),
        ).delay()
    assert len(result.get(timeout=PATIENCE_S)) == 501
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    assert totals(app).counters["succeeded"] == 502
    assert {*words(journal)} == {"first", "last", *(f"m{number}" for number in range(500))}
    assert journal.count("ran last") == 1


def test_a_producer_that_is_killed_between_two_pages(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, url: str
) -> None:
    """What it had sent runs never, and goes by itself."""
    app.configure(url=proxy.url, broker_timeout_s=0.5)
    app.client.queue_names()
    proxy.plan("pass_request", *["cut_request"] * 1000, at=proxy.sha(scripts.FLOW))
    with pytest.raises(BrokerUnavailable):
        wide_chord(MEMBERS).delay()
    app.configure(url=url, broker_timeout_s=5.0)
    start_worker()
    assert tasks.note.delay("another").get(timeout=PATIENCE_S) == "another"
    assert settled(app)
    assert words(journal) == ["another"]


# -- what grows and hands on while it runs


@pytest.mark.parametrize("fault", FAULTS)
def test_a_replacement_whose_request_or_reply_is_lost(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    start_worker(name=flow_tasks.__name__, worker_url=proxy.url, concurrency=1)
    proxy.plan(*[fault] * 2, at=proxy.sha(scripts.REPLACE))
    steps = tasks.note.si("first") | tasks.note_after.s("second")
    result = (flow_tasks.becomes.s(steps) | tasks.note_after.s("last")).delay()
    assert result.get(timeout=PATIENCE_S) == ["first", "second", "last"]
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    assert proxy.pending == 0
    assert words(journal) == ["first", "last", "second"]
    counters = totals(app).counters
    assert (counters["replaced"], counters["succeeded"]) == (1, 3)


@pytest.mark.parametrize("fault", ["hold_request", "stall_reply"], ids=["before", "after"])
def test_a_worker_that_is_killed_as_it_is_replaced(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    with killed_at(proxy, scripts.REPLACE, fault, partial(start_worker, name=flow_tasks.__name__)):
        result = (flow_tasks.becomes.s(tasks.note.si("instead")) | tasks.note_after.s("last")).delay()
    assert result.get(timeout=PATIENCE_S) == ["instead", "last"]
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    counters = totals(app).counters
    assert (counters["replaced"], counters["succeeded"]) == (1, 2)
    assert words(journal) == ["instead", "last"]


def grown(app: App, batch: Batch, width: int) -> None:
    """A batch that has ended, of one member that added so many, and what it called."""
    progress = batch.wait(timeout=PATIENCE_S)
    assert (progress.state, progress.total, progress.done) == ("succeeded", 1 + width, 1 + width)
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    assert totals(app).counters["succeeded"] == 1 + width + 2


def telling(app: App) -> NewBatch:
    return app.batch(on_success=tasks.note.s("success"), on_complete=tasks.note.s("complete"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_member_that_adds_others_and_whose_outcome_is_lost(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    start_worker(name=flow_tasks.__name__, worker_url=proxy.url, concurrency=1)
    proxy.plan(*[fault] * 2, at=proxy.sha(scripts.COMPLETE))
    with telling(app) as batch:
        batch.add(flow_tasks.grows.s(1, 300))
    grown(app, batch, 300)
    assert proxy.pending == 0
    assert words(journal) == ["complete", "success"]


@pytest.mark.parametrize("fault", ["hold_request", "stall_reply"], ids=["before", "after"])
def test_a_member_that_adds_others_and_is_killed_as_it_reports(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    with (
        killed_at(proxy, scripts.COMPLETE, fault, partial(start_worker, name=flow_tasks.__name__)),
        telling(app) as batch,
    ):
        batch.add(flow_tasks.grows.s(1, 300))
    grown(app, batch, 300)
    assert words(journal) == ["complete", "success"]


MANY = 2500
"""Two pages that are kept until the call succeeds which adds them, and one that goes with its outcome."""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("script", [scripts.PREPARE, scripts.COMPLETE, scripts.GO_ON], ids=lambda script: script.name)
def test_a_member_that_adds_many_when_requests_and_replies_are_lost(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, script: Script, fault: str
) -> None:
    start_worker(name=flow_tasks.__name__, worker_url=proxy.url, concurrency=1)
    proxy.plan(*[fault] * 2, at=proxy.sha(script))
    with telling(app) as batch:
        batch.add(flow_tasks.grows.s(1, MANY))
    grown(app, batch, MANY)
    assert proxy.pending == 0
    assert words(journal) == ["complete", "success"]


@pytest.mark.parametrize("fault", ["hold_request", "stall_reply"], ids=["before", "after"])
@pytest.mark.parametrize("script", [scripts.PREPARE, scripts.COMPLETE, scripts.GO_ON], ids=lambda script: script.name)
def test_a_member_that_adds_many_and_is_killed_meanwhile(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, script: Script, fault: str
) -> None:
    """As it adds, as it reports, and as what it has added comes to stand in the batch."""
    with (
        killed_at(proxy, script, fault, partial(start_worker, name=flow_tasks.__name__)),
        telling(app) as batch,
    ):
        batch.add(flow_tasks.grows.s(1, MANY))
    grown(app, batch, MANY)
    assert words(journal) == ["complete", "success"]


def all_once(app: App, batch: NewBatch, journal: Journal) -> None:
    """A batch of 1,500 has ended, and each of them, and what it calls, has run once."""
    progress = app.batches[batch.id].wait(timeout=PATIENCE_S)
    assert (progress.state, progress.total, progress.done) == ("succeeded", 1500, 1500)
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    assert words(journal) == sorted(["complete", "success", *(f"m{number}" for number in range(1500))])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("script", [scripts.FLOW, scripts.FLOW_ADD, scripts.FLOW_SEAL], ids=lambda script: script.name)
def test_a_batch_that_is_begun_filled_and_sealed_when_requests_and_replies_are_lost(
    producer: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, url: str, script: Script, fault: str
) -> None:
    proxy.plan(fault, at=proxy.sha(script))
    with telling(producer) as batch:
        batch.add(*(tasks.note.s(f"m{number}") for number in range(1500)))
    assert proxy.pending == 0
    producer.configure(url=url)
    start_worker()
    all_once(producer, batch, journal)


def test_a_batch_that_could_not_be_begun_or_filled_goes_on(
    producer: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, url: str
) -> None:
    """Whoever was told that the server is away says the same again, to the same batch."""
    producer.configure(broker_timeout_s=patience(1.0))
    batch = telling(producer)
    proxy.plan("cut_reply", *["cut_request"] * 1000, at=proxy.sha(scripts.FLOW))
    with pytest.raises(BrokerUnavailable):
        batch.__enter__()
    proxy.heal()
    with batch:
        proxy.plan("cut_reply", *["cut_request"] * 1000, at=proxy.sha(scripts.FLOW_ADD))
        with pytest.raises(BrokerUnavailable):
            batch.add(*(tasks.note.s(f"m{number}") for number in range(1500)))
        proxy.heal()
        batch.flush()
    producer.configure(url=url)
    start_worker()
    all_once(producer, batch, journal)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cancellation_whose_request_or_reply_is_lost(
    producer: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, url: str, fault: str
) -> None:
    members = group(tasks.note_after.s(f"m{number}") for number in range(300))
    result = chain(tasks.note.s("first"), members, tasks.note_after.s("last")).delay()
    proxy.plan(fault, at=proxy.sha(scripts.FLOW_CANCEL))
    assert producer.flows[result.id].cancel()
    assert proxy.pending == 0
    producer.configure(url=url)
    start_worker()
    assert tasks.note.delay("another").get(timeout=PATIENCE_S) == "another"
    wait_until(lambda: settled(producer), PATIENCE_S, "all to have ended")
    assert words(journal) == ["another"]
    with pytest.raises(TaskRevoked):
        producer.AsyncResult(result.id, "default").get(timeout=PATIENCE_S)


@pytest.mark.parametrize("fault", ["hold_request", "stall_reply"], ids=["before", "after"])
def test_who_cancels_is_killed_meanwhile(
    app: App, proxy: Proxy, start_worker: StartWorker, journal: Journal, fault: str
) -> None:
    """By the script alone: all of it goes on, or nothing does."""
    assert not app.flows["nobody"].cancel()  # the server knows the script then
    result = chain(tasks.note.s("first"), tasks.note_after.s("second"), tasks.note_after.s("last")).delay()
    proxy.plan(fault, at=proxy.sha(scripts.FLOW_CANCEL))
    killed = subprocess.Popen(
        [sys.executable, "-m", "rsq", "-A", tasks.__name__, "--url", proxy.url, "flow", "cancel", result.id]
    )
    try:
        wait_until(lambda: proxy.pending == 0, PATIENCE_S, "the script to be called")
    finally:
        killed.kill()
        killed.wait()
    start_worker()
    if fault == "stall_reply":
        with pytest.raises(TaskRevoked):
            result.get(timeout=PATIENCE_S)
        expected = []
    else:
        assert result.get(timeout=PATIENCE_S) == ["first", "second", "last"]
        expected = ["first", "last", "second"]
    wait_until(lambda: settled(app), PATIENCE_S, "all to have ended")
    assert words(journal) == expected
