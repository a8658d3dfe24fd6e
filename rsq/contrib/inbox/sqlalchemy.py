"""The inbox for SQLAlchemy 2: Core connections and ORM sessions.

metadata = MetaData()
inbox_table(metadata)                    # create_all() and Alembic see it like any table of yours

with engine.begin() as connection:
    if first_time(connection):           # inside a task: goes by its task id
        connection.execute(...)

Coroutines: ``await connection.run_sync(first_time)``, with an AsyncConnection or an AsyncSession.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, scoped_session

from rsq.contrib.inbox.mark import MAX_LENGTH, MarkName, mark_name, pack_result, unpack_result
from rsq.errors import SettingsError

T = TypeVar("T")

Target: TypeAlias = sa.Connection | Session | scoped_session[Any]

_ON_CONFLICT: Mapping[str, Callable[[sa.Table], Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
"""Inserts of the databases that can be told to do nothing where the row is there already."""


def inbox_table(metadata: sa.MetaData, name: str = "rsq_inbox") -> sa.Table:
    """Declare the table of marks.

    scope, key    name of the mark: task name and task id, unless the caller said otherwise
    processed_at  when the mark was made, UTC
    result        what `once` keeps, packed by `rsq.codec`; NULL for `first_time`
    """
    # By default MySQL and MariaDB hold "A" and "a" for the same.
    binary = mysql.VARCHAR(MAX_LENGTH, collation="utf8mb4_bin")
    text = sa.String(MAX_LENGTH).with_variant(binary, "mysql", "mariadb")
    return sa.Table(
        name,
        metadata,
        sa.Column("scope", text, primary_key=True),
        sa.Column("key", text, primary_key=True),
        sa.Column("processed_at", sa.DateTime(timezone=True), nullable=False, index=True),
        sa.Column("result", sa.LargeBinary),
    )


DEFAULT_TABLE = inbox_table(sa.MetaData())


def first_time(
    connection: Target, *, key: str | None = None, scope: str | None = None, table: sa.Table = DEFAULT_TABLE
) -> bool:
    """Mark the call as done, in this transaction. False: a transaction before has done so, and was committed.

    While another transaction holds the same mark, this waits for its end: True if that rolls back. Call it before
    anything else in the transaction.

    key     what is to happen once; default: the id of the running task
    scope   keys of different scopes are apart; default: the name of the running task, or '' for a key of your own
    table   what `inbox_table` gave, where it has another name or schema than the default
    Raises  SettingsError: no key outside a task, or AUTOCOMMIT mode; TypeError; what the database raises
    """
    connection = _connection(connection)
    return _insert(connection, table, _name(connection, key, scope))


def once(
    connection: Target,
    effect: Callable[[], T],
    *,
    key: str | None = None,
    scope: str | None = None,
    table: sa.Table = DEFAULT_TABLE,
) -> T:
    """Call `effect` if this is the `first_time`, and give what it returned, now or then.

    effect  works in the transaction of `connection`. What it raises must roll that back
    Raises  as `first_time`; EncodeError for a result that cannot be kept; RsqError for a mark without one
    """
    connection = _connection(connection)
    name = _name(connection, key, scope)
    mark = _is(table, name)
    if _insert(connection, table, name):
        value = effect()
        connection.execute(sa.update(table).where(mark).values(result=pack_result(value)))
        return value
    # A locking read sees what was committed last, even where the transaction reads from an older snapshot.
    kept: T = unpack_result(connection.scalar(sa.select(table.c.result).where(mark).with_for_update()), name)
    return kept


def forget(connection: Target, older_than: timedelta, *, table: sa.Table = DEFAULT_TABLE) -> int:
    """Delete the marks that are older; gives their number. A call whose mark is gone would have its effect again."""
    until = datetime.now(timezone.utc) - older_than
    return _connection(connection).execute(sa.delete(table).where(table.c.processed_at < until)).rowcount


def _name(connection: sa.Connection, key: str | None, scope: str | None) -> MarkName:
    return mark_name(key, scope, empty_is_null=connection.dialect.name == "oracle")


def _is(table: sa.Table, name: MarkName) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.scope == name.scope, table.c.key == name.key)


def _connection(target: Target) -> sa.Connection:
    if isinstance(target, Session | scoped_session):
        return target.connection()
    if isinstance(target, sa.Connection):
        return target
    raise TypeError(
        "the inbox needs the Connection or the Session in whose transaction the effect happens, "
        f"not {type(target).__name__}; in coroutines: await connection.run_sync(first_time)"
    )


def _insert(connection: sa.Connection, table: sa.Table, name: MarkName) -> bool:
    """Whether the mark is new. A mark that is there already does not break the transaction."""
    _check_transaction(connection)
    values = {**name._asdict(), "processed_at": datetime.now(timezone.utc)}
    insert = _ON_CONFLICT.get(connection.dialect.name)
    if insert is not None:
        statement = insert(table).values(values).on_conflict_do_nothing()
        return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount == 1
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(table).values(values))
    except IntegrityError:
        # Of a column or a trigger that the inbox knows nothing of, too: only a mark that is there means "done before".
        # A locking read sees what was committed last, even where the transaction reads from an older snapshot.
        if connection.scalar(sa.select(table.c.key).where(_is(table, name)).with_for_update()) is None:
            raise
        return False
    return True


def _check_transaction(connection: sa.Connection) -> None:
    """Refuse a connection that commits each statement by itself: a crash could leave a mark without its effect."""
    if not connection.in_transaction():
        connection.begin()  # as the insert would
    pooled = connection.connection
    assert pooled.dbapi_connection is not None, "a connection in a transaction is open"
    try:
        autocommit = connection.dialect.detect_autocommit_setting(pooled.dbapi_connection)
    except NotImplementedError:  # a dialect from elsewhere, which cannot tell
        return
    # SQLite's driver is in this mode, too, where BEGIN is sent by hand; it knows then that a transaction is open.
    if autocommit and not getattr(pooled.driver_connection, "in_transaction", False):
        raise SettingsError("the inbox needs a transaction, and this connection is in AUTOCOMMIT mode")
