"""What rsq grew from: events of users, consumers in one group, retries, dead letters, and one effect for each event."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from rsq import App
from rsq.broker.dead_letters import dead_letters
from tests.helpers import wait_until
from tests.integration import origin_tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals
from tests.servers import not_on_cluster

USERS = 20
QUEUE = "user_events.registration"


@pytest.mark.leaves("user_events")
@not_on_cluster("the client of the tests finds a key by its tag, and these streams have none")
def test_each_event_has_one_effect(
    url: str, start_worker: StartWorker, redis: Any, journal: Journal, tmp_path: Path
) -> None:
    """Sent by a plain client: one twice, one with a version that comes late; two workers, whose children are killed."""
    database = f"sqlite:///{tmp_path / 'effects.db'}"
    engine = origin_tasks.make_engine(database)
    origin_tasks.metadata.create_all(engine)
    app: App = origin_tasks.app
    app.configure(url=url)

    def counters() -> dict[str, int]:
        return totals(app, QUEUE).counters

    def send(user: int, message: str, version: int, **more: str) -> None:
        redis.xadd("user_events", {"user_id": user, "message_id": message, "version": version, **more})

    for user in range(USERS):
        send(user, f"m-{user}", 5, **({"kills": "once"} if user % 8 == 0 else {}))
    send(2, "m-2", 5)
    for _ in range(2):
        start_worker("-Q", QUEUE, name=origin_tasks.__name__, RSQ_TEST_DATABASE=database)
    wait_until(lambda: counters().get("succeeded", 0) >= USERS // 2 and settled(app, QUEUE), 120, "all to end")
    send(4, "late", 4)
    send(6, "newer", 6)
    send(8, "m-8", 5)
    wait_until(
        lambda: sum(counters().get(how, 0) for how in ("succeeded", "superseded", "duplicate", "dead")) == USERS + 4,
        120,
        "all to end",
    )
    expected = sorted([*(f"m-{user}" for user in range(0, USERS, 2)), "newer"])
    with engine.connect() as connection:
        assert sorted(connection.execute(sa.select(origin_tasks.effects.c.message_id)).scalars()) == expected
    with app.client.link() as link:
        letters = list(dead_letters(link, app.client.queue(QUEUE)))
    assert len(letters) == USERS // 2
    assert {(letter.reason, letter.attempts) for letter in letters} == {("retries-exhausted", 4)}
    assert [journal.count(f"ran m-1 {attempt}") for attempt in (1, 2, 3, 4)] == [1, 1, 1, 1]
    assert journal.count("ran late 1") == 0
    app.close()
