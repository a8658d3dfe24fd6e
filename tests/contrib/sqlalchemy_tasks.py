"""The app that worker processes load in the tests of the inbox for SQLAlchemy."""

from __future__ import annotations

import os
import signal
from typing import Any

import sqlalchemy as sa

from rsq import App, Task
from rsq.contrib.inbox.sqlalchemy import first_time, inbox_table, once
from tests.integration.tasks import journal

app = App("inbox", task_defaults={"retry_backoff": 0.05})

DATABASE = "RSQ_TEST_DATABASE"

metadata = sa.MetaData()
inbox = inbox_table(metadata)
payments = sa.Table(
    "payments", metadata, sa.Column("number", sa.Integer, primary_key=True), sa.Column("cents", sa.Integer)
)


def make_engine(url: str) -> sa.Engine:
    """Without a pool, so that no connection is kept beyond its use."""
    wait = {"timeout": 60} if url.startswith("sqlite") else {}
    return sa.create_engine(url, poolclass=sa.NullPool, connect_args=wait)


def pay(connection: sa.Connection, cents: int = 100) -> int:
    """The effect; gives the number of the payment."""
    paid = connection.execute(sa.insert(payments).values(cents=cents))
    assert paid.inserted_primary_key is not None
    number: int = paid.inserted_primary_key[0]
    return number


@app.task(bind=True)
def pay_and_die(self: Task[..., Any], cents: int) -> str:
    """The first run is killed after the database's commit and before rsq's."""
    with make_engine(os.environ[DATABASE]).begin() as connection:
        first = first_time(connection)
        if first:
            pay(connection, cents)
    journal("paid" if first else "seen", self.request.crashes)
    if self.request.crashes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@app.task(bind=True)
def number_and_die(self: Task[..., Any], cents: int) -> int:
    """The same, with a result that the second run must give."""
    with make_engine(os.environ[DATABASE]).begin() as connection:
        number = once(connection, lambda: pay(connection, cents))
    journal("number", number)
    if self.request.crashes == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@app.task
def pay_invoice(invoice: str, cents: int) -> bool:
    """Goes by a name of its own: all calls together pay once."""
    with make_engine(os.environ[DATABASE]).begin() as connection:
        first = first_time(connection, key=invoice)
        if first:
            pay(connection, cents)
    return first
