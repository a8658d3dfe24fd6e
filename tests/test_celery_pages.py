"""What the pages on calling and on canvas of Celery's guide show, by examples of our own that mean the same.

Chains, groups, chords and partial signatures of these pages stand in `tests/test_flows.py`, map, starmap and chunks in
`tests/test_many.py`, stamps in `tests/test_stamps.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import rsq
from rsq import (
    App,
    AsyncResult,
    GroupResult,
    ResultIgnored,
    ResultSet,
    SettingsError,
    State,
    Task,
    TaskRevoked,
    chain,
    chord,
    current_request,
    group,
    signature,
)
from tests.modes import MODES, noted_in, running

app = App("pages", task_defaults={"max_retries": 0})
noted: list[Any] = []
folder = Path()


class OutOfStock(Exception):
    pass


@app.task
def add(x: int, y: int, debug: bool = False) -> int:
    return -1 if debug else x + y


@app.task
def mul(x: int, y: int) -> int:
    return x * y


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def fails(*args: Any) -> None:
    raise OutOfStock("pens")


@app.task
def note(*args: Any) -> None:
    noted.append(list(args))


@app.task
def note_id(task_id: str) -> None:
    noted.append([task_id])


@app.task
def note_request(request: Any, exc: BaseException, traceback: str) -> None:
    """An errback that writes down what failed, as the page does."""
    (folder / request.id).write_text(f"{request.task} {exc!r}\n{traceback}")
    noted.append(request.id)


@app.task
def note_result(task_id: str) -> None:
    """An errback that asks for the result of what failed."""
    result: AsyncResult[Any] = app.AsyncResult(task_id)
    noted.append([result.get(timeout=60, propagate=False), "fails" in (result.traceback or "")])


@app.task
def open_account(name: str, mail: str) -> dict[str, str]:
    return {"name": name, "mail": mail}


@app.task
def import_contacts(account: dict[str, str]) -> str:
    return f"contacts of {account['name']}"


@app.task
def send_welcome(account: dict[str, str]) -> str:
    return f"mail to {account['mail']}"


@app.task(bind=True)
def tells_progress(self: Task[..., Any]) -> str:
    self.update_state(state="PROGRESS", meta={"progress": 50})
    return "done"


@app.task
def whereabouts() -> list[Any]:
    request = current_request()
    assert request is not None
    return [request.queue, request.priority, dict(request.headers)]


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    global folder
    folder = tmp_path
    noted.clear()
    with running(app, request) as mode:
        yield mode


noted_after = partial(noted_in, noted, add.s(1, 1))


class TestCalling:
    def test_a_task_is_called_in_three_ways(self, mode: str) -> None:
        assert add(2, 2) == 4
        assert add.delay(2, y=2).get(timeout=60) == 4
        assert add.apply_async(args=[2], kwargs={"y": 2}).get(timeout=60) == 4
        assert add.s(2, y=2).apply_async().get(timeout=60) == 4
        assert app.send_task(add.name, (2, 2)).get(timeout=60) == 4

    def test_when_it_starts_and_until_when(self, mode: str) -> None:
        now = datetime.now(timezone.utc)
        second = timedelta(milliseconds=10)
        assert add.apply_async((2, 2), countdown=0.01).get(timeout=60) == 4
        assert add.apply_async((2, 2), eta=now + second).get(timeout=60) == 4
        assert add.apply_async((2, 2), countdown=0.01, expires=120).get(timeout=60) == 4
        assert add.apply_async((2, 2), expires=now + timedelta(days=2)).get(timeout=60) == 4
        late = add.apply_async((2, 2), expires=now - timedelta(days=2))
        with pytest.raises(TaskRevoked):
            late.get(timeout=60)
        assert late.state is State.REVOKED

    def test_what_follows_a_call(self, mode: str) -> None:
        result = add.apply_async((2, 2), link=[add.s(16), mul.s(10)])
        assert [child.get(timeout=60) for child in result.children] == [20, 40]
        fails.apply_async((2,), link_error=note_result.s())
        ((error, has_trace),) = noted_after(1)
        assert isinstance(error, OutOfStock)
        assert has_trace

    def test_where_it_goes(self, mode: str) -> None:
        result = whereabouts.apply_async(headers={"tenant": "a"}, priority=7)
        assert result.get(timeout=60) == ["default", 7, {"tenant": "a"}]

    def test_a_state_of_ones_own(self, mode: str) -> None:
        result = tells_progress.delay()
        assert result.get(timeout=60) == "done"
        assert result.info == "done"
        progress = result.progress
        assert progress is None or progress.meta == {"progress": 50}

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"retry": False}, "retry: needless, a send is tried until broker_timeout_s is over"),
            ({"retry_policy": {"max_retries": 3}}, "retry_policy: needless"),
            ({"serializer": "json"}, "serializer: needless, values travel as msgpack"),
            ({"compression": "zlib"}, "compression: not there"),
            ({"routing_key": "a.b"}, "routing_key: write queue="),
            ({"exchange": "a"}, "exchange: write queue="),
            ({"connection": None}, "connection: there is one server"),
            ({"shadow": "other"}, "shadow: not there; put it into headers"),
        ],
    )
    def test_options_that_are_needless_here_say_so(self, options: Any, text: str) -> None:
        with app.testing.eager(), pytest.raises(SettingsError, match=text):
            add.apply_async((2, 2), **options)

    def test_without_a_result_there_is_nothing_to_get(self, mode: str) -> None:
        """With Celery `get` gives None there, or hangs."""
        with pytest.raises(ResultIgnored):
            add.apply_async((2, 2), ignore_result=True).get(timeout=60)

    def test_a_server_that_is_away(self) -> None:
        away = App("away", url="redis://localhost:1", broker_timeout_s=0.01)
        sends = away.task(name="sends")(lambda: None)
        with pytest.raises(rsq.BrokerError):
            sends.delay()
        with pytest.raises(AttributeError, match=r"catch rsq\.BrokerError"):
            sends.OperationalError  # type: ignore[attr-defined]  # noqa: B018
        away.close()


class TestSignatures:
    def test_its_fields_are_to_be_seen(self) -> None:
        made = add.signature((2, 2), {"debug": True}, countdown=10)
        assert (made.args, made.kwargs, made.options) == ((2, 2), {"debug": True}, {"countdown": 10})
        assert repr(add.s(2, 2, debug=True)) == f"{add.name}(2, 2, debug=True)"
        assert repr(chain(add.s(4, 4), mul.s(8))) == f"{add.name}(4, 4) | {mul.name}(8)"

    def test_what_is_given_later_counts(self, mode: str) -> None:
        assert add.signature((2, 2), countdown=600).apply_async(countdown=0.01).get(timeout=60) == 4
        assert add.s(2, 2).delay(debug=True).get(timeout=60) == -1
        assert add.s(2, 2).apply_async(kwargs={"debug": True}).get(timeout=60) == -1
        assert add.s(2).clone(args=(4,), kwargs={"debug": True}).delay().get(timeout=60) == -1

    def test_one_that_takes_nothing_more(self, mode: str) -> None:
        add.apply_async((2, 2), link=note.signature(immutable=True))
        add.apply_async((2, 2), link=note.si("clean"))
        assert sorted(noted_after(2)) == [[], ["clean"]]

    def test_links_upon_links(self, mode: str) -> None:
        made = add.s(2, 2)
        made.link(mul.s(4))
        made.link(note.s())
        assert made.delay().children[0].get(timeout=60) == 16
        assert noted_after(1) == [[4]]


class TestCanvas:
    def test_a_workflow_is_called_by_name_of_arguments(self, mode: str) -> None:
        workflow = open_account.s() | group(import_contacts.s(), send_welcome.s())
        result = workflow.delay(name="artv", mail="art@example.org")
        assert result.get(timeout=60) == ["contacts of artv", "mail to art@example.org"]

    def test_the_way_back_through_a_chain(self, mode: str) -> None:
        result = chain(add.s(4, 4), mul.s(8), mul.s(10))()
        assert result.get(timeout=60) == 640
        assert result.parent.get(timeout=60) == 64
        assert result.parent.parent.get(timeout=60) == 8

    def test_the_way_forth(self, mode: str) -> None:
        result = add.apply_async((2, 2), link=mul.s(16))
        assert result.get(timeout=60) == 4
        assert [(each.id, value) for each, value in result.collect(timeout=60)] == [
            (result.id, 4),
            (result.children[0].id, 64),
        ]
        assert dict(result.collect(intermediate=True)) == {result: 4, result.children[0]: 64}
        assert result.graph == {result: [result.children[0]], result.children[0]: []}

    def test_an_errback_writes_down_what_failed(self, mode: str) -> None:
        result = fails.s(2, 2).on_error(note_request.s()).delay()
        with pytest.raises(OutOfStock):
            result.get(timeout=60)
        assert noted_after(1) == [result.id]
        written = (folder / result.id).read_text()
        assert written.startswith(f"{fails.name} OutOfStock('pens')\n")
        assert "Traceback" in written

    def test_what_a_group_tells(self, mode: str) -> None:
        job = group([add.s(2, 2), add.s(4, 4), add.s(8, 8)])
        result = job.apply_async()
        assert isinstance(result, GroupResult)
        assert result.join(timeout=60) == [4, 8, 16]
        told = (result.ready(), result.successful(), result.failed(), result.waiting(), result.completed_count())
        assert told == (True, True, False, False, 3)

    @pytest.mark.parametrize("how", ["get", "join", "join_native"])
    def test_options_of_waiting_that_are_needless_say_so(self, mode: str, how: str) -> None:
        result = group(add.s(1, 1), add.s(2, 2)).delay()
        for option, text in (("interval", "results are pushed"), ("callback", "after get"), ("on_message", "progress")):
            with pytest.raises(TypeError, match=f"^{option}: .*{text}"):
                getattr(result, how)(timeout=60, **{option: 0.1})
        assert getattr(result, how)(timeout=60) == [2, 4]

    def test_partial_ones_are_filled_when_they_start(self, mode: str) -> None:
        assert (add.s(4) | mul.s(8))(16).get(timeout=60) == 160
        assert group(add.s(n) for n in range(3))(10).get(timeout=60) == [10, 11, 12]
        assert chain(add.s(1, 1) if not n else add.s(n) for n in range(4))().get(timeout=60) == 8
        assert chord(add.s(n, n) for n in range(3))(total.s()).get(timeout=60) == 6

    def test_steps_that_take_nothing_have_their_values_all_the_same(self, mode: str) -> None:
        result = (add.si(2, 2) | add.si(4, 4) | add.si(8, 8))()
        assert result.get(timeout=60) == 16
        assert (result.parent.get(timeout=60), result.parent.parent.get(timeout=60)) == (8, 4)

    def test_chords_in_chords_and_groups_behind_groups(self, mode: str) -> None:
        inner = chord([add.s(1, 1), add.s(2, 2)], total.s())
        assert chord([inner, add.s(1, 1)], total.s())().get(timeout=60) == 8
        assert (group(add.s(1, 1), add.s(2, 2)) | group(total.s(), total.s()))().get(timeout=60) == [6, 6]

    def test_results_of_calls_that_stand_alone(self, mode: str) -> None:
        results: ResultSet[int] = ResultSet(app.client, [add.delay(1, 1), add.delay(2, 2)])
        assert results.join(timeout=60) == [2, 4]

    def test_a_group_whose_members_fail(self, mode: str) -> None:
        result = group(add.s(2, 2), fails.s(), fails.s()).on_error(note_id.s()).delay()
        with pytest.raises(OutOfStock):
            result.get(timeout=60)
        assert sorted(noted_after(2)) == sorted([[result[1].id], [result[2].id]])
        assert result[0].get(timeout=60) == 4

    def test_a_chord_that_fails(self, mode: str) -> None:
        """Its own error, and none around it; the others are executed all the same."""
        result = chord([add.s(4, 4), fails.s(), add.s(8, 8)], total.s().on_error(note_id.s())).delay()
        with pytest.raises(OutOfStock):
            result.get(timeout=60)
        assert "fails" in (result.traceback or "")
        assert noted_after(1) == [[result.id]]
        header: Any = result.parent
        assert header[2].get(timeout=60) == 16

    def test_members_of_a_chord_may_ignore_their_results(self, mode: str) -> None:
        result = chord([add.signature((n, n), ignore_result=True) for n in range(3)], total.s()).delay()
        assert result.get(timeout=60) == 6

    def test_a_chord_whose_body_takes_nothing(self, mode: str) -> None:
        chord((add.s(n, n) for n in range(3)), note.si("import 7")).apply_async().get(timeout=60)
        assert noted_after(1) == [["import 7"]]

    def test_a_canvas_of_names_alone(self, mode: str) -> None:
        made = chord([signature(add.name, (n, n), app=app) for n in range(3)], signature(total.name, app=app))
        assert made().get(timeout=60) == 6

    def test_a_countdown_for_each(self, mode: str) -> None:
        made = group(add.s(n, n) for n in range(3)).skew(start=0.01, stop=0.02, step=0.01)
        assert [each.options["countdown"] for each in made] == [0.01, 0.01, 0.01]
        assert made().get(timeout=60) == [0, 2, 4]
