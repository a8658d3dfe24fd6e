"""The consumer of `test_origin`: every second user fails, and some runs are killed after the database's commit."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

import sqlalchemy as sa

from rsq import App, current_request
from rsq.contrib.inbox.sqlalchemy import first_time, inbox_table
from tests.integration.tasks import journal

app = App("origin", task_defaults={"retry_backoff": 0.05})

DATABASE = "RSQ_TEST_DATABASE"

metadata = sa.MetaData()
inbox_table(metadata)
effects = sa.Table("effects", metadata, sa.Column("user_id", sa.String), sa.Column("message_id", sa.String))


def make_engine(url: str) -> sa.Engine:
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args={"timeout": 60})


@app.on(
    "user_events",
    group="registration",
    id_field="message_id",
    version_field="version",
    key_field="user_id",
    max_retries=3,
)
def register(event: Mapping[str, str]) -> None:
    request = current_request()
    assert request is not None
    journal("ran", event["message_id"], request.attempt)
    if int(event["user_id"]) % 2:
        raise ValueError(f"user {event['user_id']} is not wanted")
    with make_engine(os.environ[DATABASE]).begin() as connection:
        if first_time(connection):
            connection.execute(sa.insert(effects).values(user_id=event["user_id"], message_id=event["message_id"]))
    if event.get("kills") and request.crashes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
