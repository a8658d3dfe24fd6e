"""Events that others write, on real workers: each of them has one outcome in each group, like any call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rsq import App, TaskRevoked
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.cli.main import main
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import event_tasks
from tests.integration.conftest import Journal, StartWorker, Worker, kill, settled, totals
from tests.servers import not_on_cluster
from tests.test_docs import DOCS, users

pytestmark = [
    pytest.mark.leaves("user_events", "orders", "gates", "payments", "profiles", "signups", "{visits}"),
    not_on_cluster("the client of the tests finds a key by its tag, and these streams have none"),
]

REGISTRATION, MAIL = "user_events.registration", "user_events.mail"

MANY = 3000

CODE = re.compile(r"`(~user_events [^`]*)`")


@pytest.fixture
def app(url: str) -> Iterator[App]:
    event_tasks.app.configure(url=url)
    yield event_tasks.app
    event_tasks.app.close()


@pytest.fixture
def start(start_worker: StartWorker) -> StartWorker:
    return partial(start_worker, name=event_tasks.__name__)


def publish(redis: Any, *users: object, stream: str = "user_events", **fields: str) -> None:
    """As any producer does, in whatever language."""
    with redis.pipeline(transaction=False) as pipe:
        for user in users:
            pipe.xadd(stream, {"event": "user_registered", "user_id": str(user), **fields})
        pipe.execute()


def ran(journal: Journal, group: str) -> list[str]:
    return [line.split()[1] for line in journal.lines() if line.startswith(f"{group} ")]


def ended(app: App, queue: str) -> dict[str, int]:
    return {how: number for how, number in totals(app, queue).counters.items() if how not in ("wakes", "crashed")}


@pytest.mark.parametrize("pool", ["prefork", "threads", "asyncio", "solo"])
def test_each_group_gets_each_event_once(app: App, start: StartWorker, redis: Any, journal: Journal, pool: str) -> None:
    publish(redis, *range(20))
    start("-P", pool)
    publish(redis, *range(20, 40))
    wait_until(lambda: all(totals(app, queue).counters.get("succeeded") == 40 for queue in (REGISTRATION, MAIL)), 30)
    for group in ("registration", "mail"):
        assert sorted(map(int, ran(journal, group))) == list(range(40))
    assert redis.xlen("user_events") == 40


def test_retries_dead_letters_and_redrive(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    start("-Q", REGISTRATION)
    publish(redis, "fine")
    publish(redis, "again", fails="once")
    publish(redis, "never", fails="always")
    wait_until(lambda: ended(app, REGISTRATION) == {"fed": 3, "succeeded": 2, "retried": 3, "dead": 1}, 30)
    assert sorted(journal.lines()) == [
        *("registration again 1", "registration again 2", "registration fine 1"),
        *(f"registration never {attempt}" for attempt in (1, 2, 3)),
    ]
    assert ran(journal, "mail") == [], "nobody reads that queue"
    queue = app.client.queue(REGISTRATION)
    with app.client.link() as link:
        (letter,) = dead_letters(link, queue)
        assert (letter.reason, letter.attempts) == ("retries-exhausted", 3)
        assert redrive(link, queue, letter)
    wait_until(lambda: ended(app, REGISTRATION)["dead"] == 2, 30)
    assert journal.count("registration never 1") == 2


def test_a_poison_event_ends_as_a_dead_letter(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    publish(redis, "poison", fails="kills")
    publish(redis, *range(10))
    start("-Q", REGISTRATION, concurrency=1)
    wait_until(lambda: ended(app, REGISTRATION) == {"fed": 11, "succeeded": 10, "dead": 1}, 60)
    with app.client.link() as link:
        (letter,) = dead_letters(link, app.client.queue(REGISTRATION))
    assert letter.reason == "worker-lost"
    assert sorted({*ran(journal, "registration")}) == sorted(["poison", *map(str, range(10))])


def test_what_cannot_be_decoded_is_kept_with_its_fields(app: App, start: StartWorker, redis: Any) -> None:
    redis.xadd("orders", {"payload": "{"}, id="5-1")
    redis.xadd("orders", {b"\xff": b"\xfe"}, id="5-2")
    redis.xadd("orders", {"payload": '{"n": 1}'}, id="5-3")
    start("-Q", "orders.shop")
    wait_until(lambda: ended(app, "orders.shop") == {"fed": 3, "succeeded": 1, "dead": 2}, 30)
    with app.client.link() as link:
        letters = list(dead_letters(link, app.client.queue("orders.shop")))
    assert [letter.reason for letter in letters] == ["undecodable", "undecodable"]
    (broken,) = (letter for letter in letters if b"payload" in letter.body)
    assert "JSONDecodeError" in broken.error["message"]
    assert any(b"\xff" in letter.body and b"\xfe" in letter.body for letter in letters)


def test_the_outcome_of_an_event_can_be_read(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    task = event_tasks.order
    assert task.source is not None
    redis.xadd("orders", {"payload": '{"n": 1}'}, id="5-1")
    start("-Q", "orders.shop")
    assert app.AsyncResult(task.source.task_id("5-1"), "orders.shop").get(timeout=60) == {"n": 1}
    assert journal.lines() == ["order orders 5-1"]


def test_an_event_can_be_revoked(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    task = event_tasks.order
    assert task.source is not None
    task_id = task.source.task_id("5-1")
    app.revoke(task_id, queue="orders.shop")
    redis.xadd("orders", {"payload": "1"}, id="5-1")
    start("-Q", "orders.shop")
    with pytest.raises(TaskRevoked):
        app.AsyncResult(task_id, "orders.shop").get(timeout=60)
    assert journal.lines() == []


def test_limits_hold_by_what_is_in_the_event(
    app: App, start: StartWorker, redis: Any, journal: Journal, tmp_path: Path
) -> None:
    gate = tmp_path / "open"
    for room in ("a", "a", "b"):
        redis.xadd("gates", {"room": room, "path": str(gate)})
    start("-Q", "gates", concurrency=3)
    wait_until(lambda: sorted(journal.lines()) == ["entered a", "entered b"], 30)
    gate.touch()
    wait_until(lambda: ended(app, "gates").get("succeeded") == 3, 60)
    assert journal.count("entered a") == 2


def test_a_paused_source_goes_on_where_it_was(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    app.pause(REGISTRATION)
    publish(redis, *range(5))
    start("-Q", f"{REGISTRATION},{MAIL}")
    wait_until(lambda: len(ran(journal, "mail")) == 5, 30)
    assert ran(journal, "registration") == []
    app.resume(REGISTRATION)
    wait_until(lambda: sorted(ran(journal, "registration")) == [*"01234"], 30)


@pytest.mark.parametrize("killed", ["children", "worker"])
def test_each_event_has_one_outcome_whoever_is_killed(
    app: App, start: StartWorker, redis: Any, journal: Journal, killed: str
) -> None:
    publish(redis, *range(MANY))
    victim, _ = start("-Q", REGISTRATION, lease=2), start("-Q", REGISTRATION, lease=2)
    wait_until(lambda: ended(app, REGISTRATION).get("succeeded", 0) > MANY // 10, 60)
    if killed == "worker":
        victim.kill()
    else:
        for pid in victim.children():
            kill(pid)
    publish(redis, *range(MANY, MANY + 500))
    wait_until(lambda: ended(app, REGISTRATION).get("succeeded", 0) >= MANY + 500, 120)
    wait_until(lambda: settled(app, REGISTRATION), 30)
    assert ended(app, REGISTRATION) == {"fed": MANY + 500, "succeeded": MANY + 500}
    assert {*map(int, ran(journal, "registration"))} == {*range(MANY + 500)}


def test_of_events_with_the_same_id_one_runs(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    queue = "payments.ledger"
    for message in ("m1", "m2", "m1", "m3", "m2"):
        redis.xadd("payments", {"message_id": message, **({"fails": "once"} if message == "m3" else {})})
    redis.xadd("payments", {"other": "field"})
    start("-Q", queue)
    wait_until(lambda: ended(app, queue).get("succeeded") == 3 and settled(app, queue), 60)
    redis.xadd("payments", {"message_id": "m3"})
    wait_until(lambda: sum(ended(app, queue).get(how, 0) for how in ("duplicate", "superseded")) == 3, 60)
    assert sorted(journal.lines()) == ["booked m1", "booked m2", "booked m3"]
    assert ended(app, queue)["dead"] == 1, "one had no id"


def test_a_version_that_comes_late_does_not_run(app: App, start: StartWorker, redis: Any, journal: Journal) -> None:
    queue = "profiles.search"
    start("-Q", queue)
    redis.xadd("profiles", {"user_id": "7", "version": "5"})
    wait_until(lambda: ended(app, queue).get("succeeded") == 1, 30)
    for user, version in (("7", "4"), ("7", "6"), ("8", "4")):
        redis.xadd("profiles", {"user_id": user, "version": version})
    wait_until(lambda: ended(app, queue) == {"fed": 4, "succeeded": 3, "superseded": 1}, 30)
    assert sorted(journal.lines()) == ["indexed 7 5", "indexed 7 6", "indexed 8 4"]


def test_events_of_one_order_run_one_after_the_other_whoever_is_killed(
    app: App, start: StartWorker, redis: Any, journal: Journal
) -> None:
    """Some fail at first, and those behind them wait."""
    with redis.pipeline(transaction=False) as pipe:
        for number in range(600):
            late = {"fails": "1"} if number % 50 == 7 else {}
            pipe.xadd("{visits}", {"user": "abc"[number % 3], "n": str(number), **late})
        pipe.execute()
    victim, _ = start("-Q", "visits", lease=2), start("-Q", "visits", lease=2)
    wait_until(lambda: ended(app, "visits").get("succeeded", 0) > 100, 60)
    victim.kill()
    wait_until(lambda: ended(app, "visits").get("succeeded") == 600, 120)
    assert ended(app, "visits") == {"fed": 600, "succeeded": 600, "retried": 12}
    for user in "abc":
        ran = [int(line.split()[2]) for line in journal.lines() if line.startswith(f"visited {user} ")]
        # What the killed one ran may run again, before the next.
        assert ran == sorted(ran)
        assert sorted({*ran}) == [number for number in range(600) if "abc"[number % 3] == user]


def test_what_an_event_sends_is_not_doubled_by_its_next_run(
    app: App, start: StartWorker, redis: Any, journal: Journal
) -> None:
    """Whatever the order in which it is sent; and what is sent twice in one run is two calls."""
    redis.xadd("signups", {"user_id": "7"})
    redis.xadd("signups", {"user_id": "8"})
    start("-Q", "notes")
    wait_until(lambda: ended(app, "notes").get("retried") == 2 and settled(app, "notes"), 60)
    assert sorted(journal.lines()) == sorted(["noted a", "noted b", "noted b", "noted c", "noted many"] * 2)


def test_status_tells_of_sources(app: App, start: StartWorker, redis: Any, url: str) -> None:
    publish(redis, *range(3))
    worker: Worker = start("-Q", MAIL)
    wait_until(lambda: ended(app, MAIL).get("succeeded") == 3, 30)
    assert worker.stop() == 0
    publish(redis, *range(2))

    def status(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["--url", url, "status", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    (source,) = json.loads(status("--json"))["sources"]
    assert (source["stream"], source["group"], source["queue"]) == ("user_events", "mail", MAIL)
    assert (source["length"], source["unread"], source["foreign"]) == (5, 2, [])
    assert "user_events  mail   user_events.mail       5       2" in status()


def test_the_worker_of_a_test_waits_for_events(app: App, redis: Any, journal: Journal, url: str) -> None:
    publish(redis, *range(7))
    with app.testing.worker(queues=[MAIL], url=url) as worker:
        worker.wait_idle(60)
        assert sorted(ran(journal, "mail")) == [*"0123456"]


def test_the_rights_that_the_docs_name_are_enough(
    own_server: MakeServer, start: StartWorker, journal: Journal, tmp_path: Path
) -> None:
    text = (DOCS / "deployment.md").read_text().replace("\n", " ").partition("(streams.md) needs rights")[2]
    more = dict(zip(("worker", "operator"), CODE.findall(text), strict=False))
    rights = {who: f"{users()[who]} {more[who]}" for who in more}
    acl = tmp_path / "users.acl"
    acl.write_text("\n".join(["user default on nopass ~* &* +@all", *rights.values(), ""]))
    server = own_server(config={"aclfile": str(acl)})
    with server.client(decode_responses=True) as client:
        start("-Q", MAIL, worker_url=f"unix://shop-worker:work@{server.socket}?db=0")
        publish(client, 1)
        wait_until(lambda: ran(journal, "mail") == ["1"], 30)
        wait_until(lambda: client.xinfo_groups("user_events"), 30)
        url = f"unix://shop-operator:operate@{server.socket}?db=0"
        done = CliRunner().invoke(main, ["--url", url, "status", "--json"])
        assert json.loads(done.output)["sources"][0]["problem"] == ""
        refused = {entry["object"] for entry in client.acl_log()}
    assert refused <= {"client", "client|setinfo"}
