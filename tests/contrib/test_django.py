"""The inbox for Django: the mark and the effect are one, on SQLite and on PostgreSQL."""

from __future__ import annotations

import importlib
import json
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from django.core.management import call_command
from django.db import IntegrityError, connections, transaction

from rsq import App, RsqError, SettingsError
from rsq.contrib.inbox import sqlalchemy as sqlalchemy_inbox
from rsq.contrib.inbox.django import first_time, forget, once
from tests.contrib.postgres import Postgres, find_binaries
from tests.helpers import wait_until
from tests.integration.conftest import Journal, StartWorker, settled

app = App("django-inline", task_defaults={"retry_backoff": 0})


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    """Django, set up for the whole run: it can be only once in a process."""
    made: dict[str, Any] = {
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(tmp_path_factory.mktemp("django") / "shop.db"),
            "OPTIONS": {"timeout": 60},
        }
    }
    if find_binaries() is not None:
        postgres: Postgres = request.getfixturevalue("postgres")
        postgres.create("django")
        made["postgres"] = postgres.django_settings("django")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RSQ_TEST_DATABASES", json.dumps(made))
        import tests.contrib.django_tasks  # noqa: F401
    for alias in made:
        call_command("migrate", database=alias, verbosity=0)
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE payments (cents INTEGER)")
    connections.close_all()
    return made


@pytest.fixture(params=["default", "postgres"])
def using(request: pytest.FixtureRequest, databases: Mapping[str, Any]) -> Iterator[str]:
    """The alias of an empty database."""
    if request.param == "postgres":
        request.getfixturevalue("postgres")  # skips or fails where there is none
    for table in ("payments", "rsq_inbox"):
        with connections[request.param].cursor() as cursor:
            cursor.execute(f"DELETE FROM {table}")
    yield request.param
    connections.close_all()


def pay(using: str) -> None:
    from tests.contrib.django_tasks import pay

    pay(using)


def paid(using: str) -> int:
    with connections[using].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM payments")
        return int(cursor.fetchone()[0])


def marks(using: str) -> list[tuple[str, str]]:
    from rsq.contrib.inbox.django.models import Mark

    return list(Mark.objects.using(using).order_by("scope", "key").values_list("scope", "key"))


def pay_once(using: str, key: str | None = "k") -> bool:
    with transaction.atomic(using):
        first = first_time(key=key, using=using)
        if first:
            pay(using)
    return first


def test_it_is_new_once(using: str) -> None:
    assert [pay_once(using, key) for key in ("a", "a", "b", "A", "a")] == [True, False, True, True, False]
    assert paid(using) == 3


def test_it_goes_with_a_rollback(using: str) -> None:
    with pytest.raises(ConnectionError), transaction.atomic(using):
        assert first_time(key="k", using=using)
        pay(using)
        raise ConnectionError
    assert marks(using) == []
    assert pay_once(using)
    assert paid(using) == 1


def test_a_known_mark_does_not_break_the_transaction(using: str) -> None:
    assert pay_once(using)
    with transaction.atomic(using):
        pay(using)
        assert not first_time(key="k", using=using)
        pay(using)
    assert paid(using) == 3


@pytest.mark.parametrize("using", ["postgres"], indirect=True)
@pytest.mark.parametrize("commits", [True, False], ids=["commit", "rollback"])
def test_the_second_waits_for_the_first(using: str, commits: bool, postgres: Postgres) -> None:
    def second() -> bool:
        try:
            return pay_once(using)
        finally:
            connections.close_all()

    def waits() -> bool:
        with postgres.connect("django") as connection:
            asked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = 'django'"
            return connection.execute(asked).fetchone() == (1,)

    with ThreadPoolExecutor(1) as thread:
        with transaction.atomic(using):
            assert first_time(key="k", using=using)
            answer = thread.submit(second)
            wait_until(waits, what="the second to wait")
            transaction.set_rollback(not commits, using)
        assert answer.result(30) is not commits


def test_of_many_at_once_one_is_the_first(using: str) -> None:
    start = threading.Barrier(4)

    def run() -> int:
        firsts = 0
        try:
            for key in range(10):
                start.wait(30)
                firsts += pay_once(using, str(key))
        finally:
            connections.close_all()
        return firsts

    with ThreadPoolExecutor(4) as threads:
        runs = [threads.submit(run) for _ in range(4)]
        assert sum(run.result(60) for run in runs) == 10
    assert paid(using) == 10


def test_without_a_transaction_it_is_refused(using: str) -> None:
    with pytest.raises(SettingsError, match=r"call it inside transaction.atomic\(\)"):
        first_time(key="k", using=using)
    with pytest.raises(SettingsError, match=r"call it inside transaction.atomic\(\)"):
        once(lambda: pay(using), key="k", using=using)
    assert (marks(using), paid(using)) == ([], 0)


@pytest.mark.parametrize("using", ["default"], indirect=True)
def test_without_a_task_there_must_be_a_key(using: str) -> None:
    with transaction.atomic(), pytest.raises(SettingsError, match="no task runs in this context"):
        first_time()


def test_a_task_goes_by_its_id_through_all_its_attempts(using: str) -> None:
    runs = []

    @app.task(bind=True, name="inbox.fails-after-the-commit", max_retries=2)
    def fails_after_the_commit(self: Any) -> None:
        runs.append(pay_once(using, key=None))
        if self.request.retries < 2:
            raise ConnectionError

    with app.testing.eager():
        handles = [fails_after_the_commit.delay(), fails_after_the_commit.delay()]
    assert runs == 2 * [True, False, False]
    assert paid(using) == 2
    assert marks(using) == sorted((fails_after_the_commit.name, handle.id) for handle in handles)


def test_once_gives_the_same_result_again(using: str) -> None:
    def effect() -> tuple[int, str]:
        pay(using)
        return paid(using), "paid"

    answers = []
    for _ in range(3):
        with transaction.atomic(using):
            answers.append(once(effect, key="k", using=using))
    assert answers == 3 * [(1, "paid")]
    assert paid(using) == 1


@pytest.mark.parametrize("using", ["default"], indirect=True)
def test_the_default_database(using: str) -> None:
    with transaction.atomic():
        assert first_time(key="k")
        assert once(lambda: 5, key="o") == 5
        with pytest.raises(RsqError, match="the mark '', 'k' holds no result"):
            once(lambda: 6, key="k")
    assert marks(using) == [("", "k"), ("", "o")]
    assert forget(timedelta()) == 2


def test_old_marks_are_forgotten(using: str) -> None:
    from rsq.contrib.inbox.django.models import Mark

    assert pay_once(using, "old")
    old = Mark.objects.using(using).get()
    Mark.objects.using(using).update(processed_at=old.processed_at - timedelta(days=40))
    assert pay_once(using, "new")
    assert forget(timedelta(days=41), using=using) == 0
    assert forget(timedelta(days=39), using=using) == 1
    assert marks(using) == [("", "new")]


@pytest.mark.parametrize("using", ["default"], indirect=True)
def test_a_row_that_the_database_refuses_is_no_mark(using: str) -> None:
    with connections[using].cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER strict BEFORE INSERT ON rsq_inbox WHEN NEW.key = 'k' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    try:
        with pytest.raises(IntegrityError, match="no"):
            pay_once(using)
        with pytest.raises(IntegrityError, match="no"), transaction.atomic(using):
            once(lambda: pay(using), key="k", using=using)
        assert (marks(using), paid(using)) == ([], 0)
        assert [pay_once(using, "other"), pay_once(using, "other")] == [True, False]
    finally:
        with connections[using].cursor() as cursor:
            cursor.execute("DROP TRIGGER strict")


@pytest.mark.parametrize("using", ["default"], indirect=True)
def test_where_an_empty_text_is_null_a_key_needs_a_scope(using: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections[using].features, "interprets_empty_strings_as_nulls", True)
    with transaction.atomic(using):
        with pytest.raises(SettingsError, match="give a key of your own a scope"):
            first_time(key="k", using=using)
        assert first_time(key="k", scope="mine", using=using)


def test_mysql_tells_case_apart() -> None:
    migration = importlib.import_module("rsq.contrib.inbox.django.migrations.0002_exact_names_on_mysql")

    def statements(vendor: str) -> list[str]:
        told: list[str] = []
        migration.tell_case_apart(None, SimpleNamespace(connection=SimpleNamespace(vendor=vendor), execute=told.append))
        return told

    assert statements("postgresql") == statements("sqlite") == []
    assert [text.split(" MODIFY ")[1] for text in statements("mysql")] == [
        "scope varchar(255) COLLATE utf8mb4_bin NOT NULL",
        "`key` varchar(255) COLLATE utf8mb4_bin NOT NULL",
    ]


@pytest.mark.usefixtures("databases")
def test_the_migrations_make_what_the_model_says() -> None:
    call_command("makemigrations", "rsq_inbox", check=True, dry_run=True, verbosity=0)


def test_the_table_is_that_of_sqlalchemy(using: str, databases: Mapping[str, Any]) -> None:
    if using == "default":
        engine = sa.create_engine(f"sqlite:///{databases[using]['NAME']}", poolclass=sa.NullPool)
    else:
        url = sa.URL.create("postgresql+psycopg", databases[using]["USER"], database="django")
        engine = sa.create_engine(url, connect_args={"host": databases[using]["HOST"]}, poolclass=sa.NullPool)
    assert pay_once(using)
    with engine.begin() as connection:
        assert not sqlalchemy_inbox.first_time(connection, key="k")
        assert sqlalchemy_inbox.once(connection, lambda: (1, 2), key="o") == (1, 2)
    with transaction.atomic(using):
        assert once(lambda: (3, 4), key="o", using=using) == (1, 2)
    made = {column["name"] for column in sa.inspect(engine).get_columns("rsq_inbox")}
    assert made == {column.name for column in sqlalchemy_inbox.DEFAULT_TABLE.columns}
    assert sa.inspect(engine).get_pk_constraint("rsq_inbox")["constrained_columns"] == ["scope", "key"]


# -- real workers


@pytest.fixture
def workers_app(url: str, databases: Mapping[str, Any]) -> Iterator[App]:
    from tests.contrib.django_tasks import app

    app.configure(url=url)
    yield app
    app.close()


@pytest.fixture
def work(start_worker: StartWorker, databases: Mapping[str, Any], using: str) -> None:
    start_worker(name="tests.contrib.django_tasks", concurrency=2, RSQ_TEST_DATABASES=json.dumps(databases))


@pytest.mark.usefixtures("work")
def test_killed_between_the_two_commits_it_has_paid_once(workers_app: App, using: str, journal: Journal) -> None:
    from tests.contrib.django_tasks import pay_and_die

    handle = pay_and_die.delay(using)
    assert handle.get(timeout=30) == "done"
    assert journal.lines() == ["paid 0", "seen 1"]
    assert paid(using) == 1
    assert marks(using) == [(pay_and_die.name, handle.id)]
    wait_until(lambda: settled(workers_app), what="it to be settled")


@pytest.mark.usefixtures("work", "workers_app")
def test_of_many_calls_in_two_processes_one_pays(using: str) -> None:
    from tests.contrib.django_tasks import pay_invoice

    handles = pay_invoice.map_async([("invoice-17", using)] * 40)
    assert sum(handle.get(timeout=60) for handle in handles) == 1
    assert paid(using) == 1
