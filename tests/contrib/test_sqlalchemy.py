"""The inbox for SQLAlchemy: the mark and the effect are one, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from rsq import App, EncodeError, RsqError, SettingsError
from rsq.contrib.inbox import sqlalchemy as inbox_module
from rsq.contrib.inbox.mark import MAX_LENGTH
from rsq.contrib.inbox.sqlalchemy import first_time, forget, inbox_table, once
from tests.contrib.postgres import Postgres
from tests.contrib.sqlalchemy_tasks import (
    DATABASE,
    inbox,
    make_engine,
    metadata,
    number_and_die,
    pay,
    pay_and_die,
    pay_invoice,
    payments,
)
from tests.contrib.sqlalchemy_tasks import app as worker_app
from tests.helpers import wait_until
from tests.integration.conftest import Journal, StartWorker, settled

app = App("inbox-inline", task_defaults={"retry_backoff": 0})


on_both = pytest.mark.parametrize("database", ["sqlite", "postgres"])
on_postgres = pytest.mark.parametrize("database", ["postgres"])


@pytest.fixture
def database() -> str:
    """Its kind, where a test does not say."""
    return "sqlite"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, database: str, tmp_path: Path) -> str:
    """An empty database."""
    if database == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    postgres.create(tmp_path.name)
    return postgres.sqlalchemy_url(tmp_path.name)


@pytest.fixture
def engine(database_url: str) -> sa.Engine:
    engine = make_engine(database_url)
    metadata.create_all(engine)
    return engine


def paid(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(payments)) or 0


def marks(engine: sa.Engine) -> list[tuple[str, str]]:
    with engine.connect() as connection:
        rows = connection.execute(sa.select(inbox.c.scope, inbox.c.key).order_by(inbox.c.scope, inbox.c.key))
        return [(row.scope, row.key) for row in rows]


def pay_once(engine: sa.Engine, key: str = "k") -> bool:
    with engine.begin() as connection:
        first = first_time(connection, key=key)
        if first:
            pay(connection)
    return first


# -- the mark


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How the mark is inserted: as SQLite and PostgreSQL can do it, or in a savepoint, as for all others."""
    if request.param == "savepoint":
        monkeypatch.setattr(inbox_module, "_ON_CONFLICT", {})


ON_POSTGRES = [("postgres", "on-conflict"), ("postgres", "savepoint")]
# Python's driver for SQLite begins no transaction for a savepoint.
WAYS = [("sqlite", "on-conflict"), *ON_POSTGRES]

in_all_ways = pytest.mark.parametrize(("database", "way"), WAYS, indirect=["way"])
in_both_ways = pytest.mark.parametrize(("database", "way"), ON_POSTGRES, indirect=["way"])


@in_all_ways
@pytest.mark.usefixtures("way")
def test_it_is_new_once(engine: sa.Engine) -> None:
    assert [pay_once(engine, key) for key in ("a", "a", "b", "A", "a")] == [True, False, True, True, False]
    assert paid(engine) == 3


@in_all_ways
@pytest.mark.usefixtures("way")
def test_it_goes_with_a_rollback(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        assert first_time(connection, key="k")
        pay(connection)
        connection.rollback()
    assert marks(engine) == []
    assert pay_once(engine)
    assert paid(engine) == 1


@in_all_ways
@pytest.mark.usefixtures("way")
def test_a_known_mark_does_not_break_the_transaction(engine: sa.Engine) -> None:
    assert pay_once(engine)
    with engine.begin() as connection:
        pay(connection)
        assert not first_time(connection, key="k")
        pay(connection)
    assert paid(engine) == 3


@on_both
def test_within_one_transaction_it_is_new_once(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        assert [first_time(connection, key="k"), first_time(connection, key="k")] == [True, False]


@in_both_ways
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
def test_the_second_waits_for_the_first(engine: sa.Engine, commits: bool) -> None:
    with engine.connect() as first, engine.connect() as second, ThreadPoolExecutor(1) as thread:
        assert first_time(first, key="k")
        pid = second.scalar(sa.text("SELECT pg_backend_pid()"))
        answer = thread.submit(first_time, second, key="k")
        wait_until(lambda: waits_for_a_lock(engine, pid), what="the second to wait")
        assert not answer.done()
        first.commit() if commits else first.rollback()
        assert answer.result(30) is not commits


def waits_for_a_lock(engine: sa.Engine, pid: int) -> bool:
    with engine.connect() as connection:
        asked = sa.text("SELECT wait_event_type FROM pg_stat_activity WHERE pid = :pid")
        return bool(connection.scalar(asked, {"pid": pid}) == "Lock")


@on_both
def test_of_many_at_once_one_is_the_first(engine: sa.Engine) -> None:
    start = threading.Barrier(4)

    def run() -> int:
        firsts = 0
        for key in range(10):
            start.wait(30)
            firsts += pay_once(engine, str(key))
        return firsts

    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(run) for _ in range(4)]
        assert sum(run.result(60) for run in runs) == 10
    assert paid(engine) == 10


@on_postgres
def test_repeatable_read_fails_rather_than_pays_twice(engine: sa.Engine) -> None:
    repeatable = engine.execution_options(isolation_level="REPEATABLE READ")
    with repeatable.connect() as connection:
        connection.execute(sa.text("SELECT 1"))  # its view of the database begins here
        assert pay_once(engine)
        with pytest.raises(OperationalError, match="could not serialize"):
            first_time(connection, key="k")
    assert not pay_once(repeatable)
    assert paid(engine) == 1


# -- the transaction


def test_sessions(engine: sa.Engine) -> None:
    with Session(engine) as session, session.begin():
        assert first_time(session, key="k")
    registry = scoped_session(sessionmaker(engine))
    assert not first_time(registry, key="k")
    registry.remove()
    with Session(engine) as session:
        assert first_time(session, key="other")
    assert marks(engine) == [("", "k")]


@on_postgres
def test_coroutines(engine: sa.Engine, database_url: str) -> None:
    @app.task(name="inbox.coroutine")
    async def pay_in_coroutine() -> bool:
        asynchronous = create_async_engine(database_url, poolclass=sa.NullPool)
        async with AsyncSession(asynchronous) as session, session.begin():
            return await session.run_sync(first_time)

    with app.testing.eager():
        handle = pay_in_coroutine.delay()
        assert handle.get() is True
    assert marks(engine) == [("inbox.coroutine", handle.id)]

    async def again() -> bool:
        async with create_async_engine(database_url, poolclass=sa.NullPool).begin() as connection:
            return await connection.run_sync(first_time, key=handle.id, scope="inbox.coroutine")

    assert asyncio.run(again()) is False


def test_an_engine_is_refused(engine: sa.Engine) -> None:
    with pytest.raises(TypeError, match=r"needs the Connection or the Session .*, not Engine; in coroutines"):
        first_time(engine, key="k")  # type: ignore[arg-type]


@on_both
@pytest.mark.parametrize("where", ["engine", "options", "connection"])
def test_autocommit_is_refused(database_url: str, engine: sa.Engine, where: str) -> None:
    autocommit = {"isolation_level": "AUTOCOMMIT"}
    if where == "engine":
        engine = sa.create_engine(database_url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
    elif where == "options":
        engine = engine.execution_options(**autocommit)
    with engine.connect() as connection:
        if where == "connection":
            connection.execution_options(**autocommit)
        with pytest.raises(SettingsError, match="AUTOCOMMIT"):
            first_time(connection, key="k")
    assert marks(make_engine(database_url)) == []


def test_transactions_begun_by_hand_are_taken(engine: sa.Engine) -> None:
    """SQLAlchemy's own advice for savepoints on SQLite: the driver begins none, an event does."""

    @sa.event.listens_for(engine, "connect")
    def no_begin(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    with engine.connect() as connection:
        assert first_time(connection, key="k")
        connection.rollback()
    assert [pay_once(engine), pay_once(engine)] == [True, False]


# -- the key


def test_without_a_task_there_must_be_a_key(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        with pytest.raises(SettingsError, match=r"no task runs in this context .*: give key='...'"):
            first_time(connection)
        with pytest.raises(SettingsError, match="no task runs in this context"):
            once(connection, lambda: 1, scope="s")
    assert marks(engine) == []


@pytest.mark.parametrize(
    ("key", "scope", "said"),
    [
        ("", None, "key '' cannot be used: take a text of 1 to 255 characters"),
        (17, None, "key 17 cannot be used"),
        ("k" * (MAX_LENGTH + 1), None, "key 'kkk.*' cannot be used"),
        ("k", "s" * (MAX_LENGTH + 1), "scope 'sss.*' cannot be used: take a text of 0 to 255 characters"),
    ],
)
def test_keys_that_cannot_be_used(engine: sa.Engine, key: Any, scope: Any, said: str) -> None:
    with engine.begin() as connection, pytest.raises(SettingsError, match=said):
        first_time(connection, key=key, scope=scope)


@on_both
def test_scopes_are_apart(engine: sa.Engine) -> None:
    longest = "ä" * MAX_LENGTH
    with engine.begin() as connection:
        assert first_time(connection, key="k")
        assert first_time(connection, key="k", scope="s")
        assert first_time(connection, key=longest, scope=longest)
        assert not first_time(connection, key="k", scope="")
    assert marks(engine) == [("", "k"), ("s", "k"), (longest, longest)]


def test_a_task_goes_by_its_id_through_all_its_attempts(engine: sa.Engine) -> None:
    runs = []

    @app.task(bind=True, name="inbox.fails-after-the-commit", max_retries=2)
    def fails_after_the_commit(self: Any) -> None:
        runs.append(pay_once_in_task(engine))
        if self.request.retries < 2:
            raise ConnectionError

    with app.testing.eager():
        handles = [fails_after_the_commit.delay(), fails_after_the_commit.delay()]
    assert runs == 2 * [True, False, False]
    assert paid(engine) == 2
    assert marks(engine) == sorted((fails_after_the_commit.name, handle.id) for handle in handles)


def test_a_task_with_two_transactions_gives_them_scopes(engine: sa.Engine) -> None:
    @app.task(name="inbox.two-steps")
    def two_steps() -> list[bool]:
        return [pay_once_in_task(engine, scope) for scope in ("debit", "credit", "debit")]

    with app.testing.eager():
        assert two_steps.delay().get() == [True, True, False]


def pay_once_in_task(engine: sa.Engine, scope: str | None = None) -> bool:
    with engine.begin() as connection:
        first = first_time(connection, scope=scope)
        if first:
            pay(connection)
    return first


WAYS_TO_FAIL = [("sqlite", "on-conflict"), ("sqlite", "savepoint"), *ON_POSTGRES]


@pytest.mark.parametrize(("database", "way"), WAYS_TO_FAIL, indirect=["way"])
@pytest.mark.usefixtures("way")
def test_a_row_that_the_database_refuses_is_no_mark(engine: sa.Engine) -> None:
    strict_metadata = sa.MetaData()
    strict = inbox_table(strict_metadata, "strict")
    strict.append_column(sa.Column("why", sa.String(9), nullable=False))
    strict.create(engine)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        first_time(connection, key="k", table=strict)
    with pytest.raises(IntegrityError), engine.begin() as connection:
        once(connection, lambda: pay(connection), key="k", table=strict)
    assert paid(engine) == 0


def test_where_an_empty_text_is_null_a_key_needs_a_scope(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.dialect, "name", "oracle")
    with engine.begin() as connection:
        with pytest.raises(SettingsError, match="holds an empty text for NULL: give a key of your own a scope"):
            first_time(connection, key="k")
        with pytest.raises(SettingsError, match="give a key of your own a scope"):
            once(connection, lambda: 1, key="k")
        assert first_time(connection, key="k", scope="mine")


# -- the result


@on_both
def test_once_gives_the_same_result_again(engine: sa.Engine) -> None:
    def effect(connection: sa.Connection) -> Callable[[], tuple[int, str]]:
        return lambda: (pay(connection), "paid")

    answers = []
    for _ in range(3):
        with engine.begin() as connection:
            answers.append(once(connection, effect(connection), key="k"))
    assert answers == 3 * [(1, "paid")]
    assert paid(engine) == 1


@on_both
def test_once_may_return_none(engine: sa.Engine) -> None:
    runs: list[int] = []
    for _ in range(2):
        with engine.begin() as connection:
            assert once(connection, lambda: runs.append(1), key="k") is None
    assert runs == [1]


@on_both
def test_an_effect_that_fails_is_tried_again(engine: sa.Engine) -> None:
    def fails() -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError), engine.begin() as connection:
        once(connection, fails, key="k")
    with pytest.raises(EncodeError, match="result: cannot serialise"), engine.begin() as connection:
        pay(connection)
        once(connection, object, key="k")
    assert paid(engine) == 0
    with engine.begin() as connection:
        once(connection, lambda: pay(connection), key="k")
    assert paid(engine) == 1


def test_a_mark_without_a_result_is_said(engine: sa.Engine) -> None:
    assert pay_once(engine)
    with engine.begin() as connection, pytest.raises(RsqError, match="the mark '', 'k' holds no result"):
        once(connection, lambda: pay(connection), key="k")
    assert paid(engine) == 1


# -- the table


@on_both
def test_old_marks_are_forgotten(engine: sa.Engine) -> None:
    assert pay_once(engine, "old")
    with engine.begin() as connection:
        made = connection.scalar(sa.select(inbox.c.processed_at))
        assert made is not None
        connection.execute(sa.update(inbox).values(processed_at=made - timedelta(days=40)))
    assert pay_once(engine, "new")
    with engine.begin() as connection:
        assert forget(connection, timedelta(days=41)) == 0
        assert forget(connection, timedelta(days=39)) == 1
    assert marks(engine) == [("", "new")]
    assert pay_once(engine, "old")


@on_both
def test_a_table_of_another_name(engine: sa.Engine) -> None:
    other = inbox_table(sa.MetaData(), "processed")
    other.create(engine)
    with engine.begin() as connection:
        assert first_time(connection, key="k", table=other)
        assert not first_time(connection, key="k", table=other)
        assert once(connection, lambda: 5, key="o", table=other) == 5
        assert forget(connection, timedelta(), table=other) == 2
    assert marks(engine) == []


def test_mysql_tells_case_apart() -> None:
    from sqlalchemy.dialects import mysql

    made = str(sa.schema.CreateTable(inbox).compile(dialect=mysql.dialect()))
    assert made.count("VARCHAR(255) COLLATE utf8mb4_bin NOT NULL") == 2


# -- real workers


@pytest.fixture
def workers_app(url: str) -> Iterator[App]:
    worker_app.configure(url=url)
    yield worker_app
    worker_app.close()


@pytest.fixture
def work(start_worker: StartWorker, database_url: str, engine: sa.Engine) -> None:
    start_worker(name="tests.contrib.sqlalchemy_tasks", concurrency=2, **{DATABASE: database_url})


@on_both
@pytest.mark.usefixtures("work")
def test_killed_between_the_two_commits_it_has_paid_once(workers_app: App, engine: sa.Engine, journal: Journal) -> None:
    handle = pay_and_die.delay(250)
    assert handle.get(timeout=30) == "done"
    assert journal.lines() == ["paid 0", "seen 1"]
    assert paid(engine) == 1
    assert marks(engine) == [(pay_and_die.name, handle.id)]
    wait_until(lambda: settled(workers_app), what="it to be settled")


@on_both
@pytest.mark.usefixtures("work")
def test_killed_between_the_two_commits_it_gives_the_first_result(
    workers_app: App, engine: sa.Engine, journal: Journal
) -> None:
    with engine.begin() as connection:
        pay(connection)
    assert number_and_die.delay(250).get(timeout=30) == 2
    assert journal.lines() == ["number 2", "number 2"]
    assert paid(engine) == 2
    wait_until(lambda: settled(workers_app), what="it to be settled")


@on_both
@pytest.mark.usefixtures("work", "workers_app")
def test_of_many_calls_in_two_processes_one_pays(engine: sa.Engine) -> None:
    handles = pay_invoice.map_async([("invoice-17", 250)] * 40)
    assert sum(handle.get(timeout=60) for handle in handles) == 1
    assert paid(engine) == 1
