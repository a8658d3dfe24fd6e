"""Graphs, in eager mode and with a worker: who waits for whom, what arrives, and what becomes of it where one fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rsq import App, Failed, FlowGone, Task, TaskRevoked, chain, chord, group
from rsq.broker.dead_letters import dead_letters, redrive
from rsq.errors import SettingsError
from rsq.flow.graph import Graph
from rsq.flow.run import FlowRun
from rsq.home import project
from tests.helpers import wait_until

app = App("graphs", task_defaults={"max_retries": 0})
other = App("others")
noted: list[Any] = []


class Broken(Exception):
    pass


@app.task
def one(value: int = 1) -> int:
    return value


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def total(numbers: list[int], more: int = 0) -> int:
    return sum(numbers) + more


@app.task
def minus(*, left: int, right: int = 0) -> int:
    return left - right


@app.task
def breaks(*args: Any, **kwargs: Any) -> None:
    raise Broken("no")


@app.task
def note(*args: Any) -> Any:
    noted.append(list(args))
    return "noted"


@app.task
def kinds(*values: Any, **named: Any) -> Any:
    """What there is of each: a value, or the name of its error."""

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(each) for each in value]
        return type(value.error).__name__ if isinstance(value, Failed) else value

    return [shown(value) for value in values] + [[name, shown(value)] for name, value in named.items()]


@app.task(bind=True)
def who(self: Task[..., Any], *args: Any) -> Any:
    return self.request.flow


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    noted.clear()
    monkeypatch.setattr(project, "find", lambda: app)


def fill(*sizes: int) -> None:
    """A batch with pages of so many."""
    with app.batch() as batch:
        for size in sizes:
            batch.add(*(one.s(n) for n in range(size)))
            batch.flush()


def test_what_arrives(mode: str) -> None:
    flow = app.flow("nightly")
    a, b = flow.add(one.s(5)), flow.add(one.s(3))
    flow.add(add.s(10), after=a, name="value")
    flow.add(total.s(100), after=[a, b], name="list")
    flow.add(minus.s(), after={"left": a, "right": b}, name="named")
    flow.add(one.si(7), after=[a, b], name="nothing")
    flow.add(total.s(), after=["value", "one-2", "list"], name="behind")
    flow.add(minus.s(right=1), after={"left": "behind"})
    run = flow.start()
    assert run.get(timeout=60) == {"named": 2, "nothing": 7, "minus": 15 + 3 + 108 - 1}
    assert run["list"].get(timeout=60) == 108
    assert run["one"].get(timeout=60) == 5
    wait_until(lambda: run.state == "succeeded", 60, "its end")
    assert set(run.nodes.values()) == {"succeeded"}
    assert set(run.nodes) == {"one", "one-2", "value", "list", "named", "nothing", "behind", "minus"}
    assert (run.progress.total, run.progress.done) == (8, 8)
    assert run.description == "nightly"
    found = app.flows[run.id]
    assert found["list"].get(timeout=60) == 108
    assert found.progress == run.progress


def test_canvases_are_nodes(mode: str) -> None:
    flow = app.flow()
    row = flow.add(group(one.s(1), one.s(2), one.s(3)))
    flow.add(total.s(), after=row, name="sum")
    each = flow.add(group(add.s(10), add.s(20)), after="sum", name="each")
    steps = flow.add(chain(total.s(), add.s(1)), after=each, name="steps")
    flow.add(chord([add.s(1), add.s(2)], total.s()), after=steps, name="chord")
    flow.add(kinds.s(), after={"rows": [row, each], "last": steps}, name="kinds")
    flow.add(group(kinds.s(), kinds.s("x")), after=[row, each], name="many")
    rows = [[1, 2, 3], [16, 26]]
    assert flow.start().get(timeout=60) == {
        "chord": 44 + 45,
        "kinds": [["rows", rows], ["last", 43]],
        "many": [[rows], [rows, "x"]],
    }


def test_each_start_is_its_own(mode: str) -> None:
    flow = app.flow()
    flow.add(who.s())
    runs = [flow.start() for _ in range(2)]
    assert [run.get(timeout=60)["who"] for run in runs] == [run.id for run in runs]


def test_a_start_that_is_repeated(mode: str) -> None:
    """Under an id of one's own it is the same flow, also where another process says it."""
    flow = app.flow()
    flow.add(note.s("once"), name="only")
    runs = [flow.start("nightly-1"), flow.start("nightly-1"), asyncio.run(started(flow, "nightly-1"))]
    assert {run["only"].get(timeout=60) for run in runs} == {"noted"}
    assert runs[0].wait(timeout=60).total == 1
    assert noted == [["once"]]
    assert flow.start()["only"].get(timeout=60) == "noted"
    assert len(noted) == 2


async def started(flow: Graph, flow_id: str) -> FlowRun:
    run = await flow.astart(flow_id)
    await app.aclose()
    return run


def test_coroutines(mode: str) -> None:
    async def main() -> Any:
        flow = app.flow()
        flow.add(total.s(), after=[flow.add(one.s(n)) for n in range(10)])
        run = await flow.astart()
        value = await run.aget(timeout=60)
        progress = await run
        await app.aclose()
        return value, progress.state

    assert asyncio.run(main()) == ({"total": 45}, "succeeded")


class TestOrder:
    def test_without_a_value(self, mode: str) -> None:
        flow = app.flow()
        first, second, third = (flow.add(note.s(word), name=word) for word in ("a", "b", "c"))
        flow.order("c", "b")
        flow.order(second, first)
        flow.start().get(timeout=60)
        assert noted == [["c"], ["b"], ["a"]]
        assert third.name == "c"

    def test_a_circle_is_refused_where_it_is_made(self) -> None:
        flow = app.flow()
        a = flow.add(one.s(), name="a")
        b = flow.add(add.s(1), after=a, name="b")
        c = flow.add(add.s(1), after=b, name="c")
        with pytest.raises(SettingsError, match="a cannot wait for c, which waits for it: a -> b -> c -> a"):
            flow.order(c, a)
        with pytest.raises(SettingsError, match="b cannot wait for b"):
            flow.order(b, b)
        flow.order(a, c)


class TestPolicies:
    """One node fails, in each way; what waits for it does as it says."""

    @staticmethod
    def values(policy: str) -> tuple[Any, dict[str, Any]]:
        flow = app.flow()
        good, bad = flow.add(one.s(2)), flow.add(breaks.s(), name="bad")
        node = flow.add(kinds.s(), after={"x": good, "y": [good, bad]}, policy=policy, name="node")
        flow.add(kinds.s("behind"), after=node, name="behind")
        flow.add(one.si(9), after=good, name="aside")
        run = flow.start()
        return run, run.get(timeout=60, propagate=False)

    def test_fail(self, mode: str) -> None:
        run, values = self.values("fail")
        assert isinstance(values["behind"], Broken)
        assert values["aside"] == 9
        with pytest.raises(Broken):
            run["node"].get(timeout=60)
        wait_until(lambda: run.state == "failed", 60, "its end")
        wanted = {"one": "succeeded", "bad": "failed", "node": "failed", "behind": "failed", "aside": "succeeded"}
        assert run.nodes == app.flows[run.id].nodes == wanted

    def test_skip(self, mode: str) -> None:
        run, values = self.values("skip")
        assert isinstance(values["behind"], TaskRevoked)
        assert "upstream" in str(values["behind"])
        with pytest.raises(TaskRevoked, match="upstream"):
            run["node"].get(timeout=60)

    def test_continue(self, mode: str) -> None:
        _, values = self.values("continue")
        assert values["behind"] == [[["x", 2], ["y", [2, "Broken"]]], "behind"]

    def test_many_to_many_continue(self, mode: str) -> None:
        flow = app.flow()
        row = flow.add(group(one.s(1), breaks.s()))
        flow.add(group(kinds.s(), kinds.s("x")), after=row, policy="continue", name="many")
        assert flow.start().get(timeout=60) == {"many": [[[1, "Broken"]], [[1, "Broken"], "x"]]}


class TestBadInput:
    @pytest.mark.parametrize(
        ("given", "text"),
        [
            ({"signature": one}, r"flow.add takes signatures, write one\.s"),
            ({"after": "nobody"}, "has no node 'nobody'; there are: a"),
            ({"after": [3]}, "has no node 3"),
            ({"after": {3: "a"}}, "names arguments"),
            ({"name": "a"}, "has a node 'a' already"),
            ({"name": "no name"}, "without spaces"),
            ({"name": ""}, "1 to 67 characters"),
            ({"policy": "go on"}, "is one of fail, skip, continue, not 'go on'"),
        ],
        ids=repr,
    )
    def test_of_a_node(self, given: dict[str, Any], text: str) -> None:
        flow = app.flow("f")
        flow.add(one.s(), name="a")
        with pytest.raises(SettingsError, match=text):
            flow.add(**{"signature": one.s(), **given})
        assert len(flow) == 1

    def test_a_node_of_another_flow(self) -> None:
        with pytest.raises(SettingsError, match="belongs to another flow"):
            app.flow().add(add.s(1), after=app.flow().add(one.s()))

    def test_no_nodes(self) -> None:
        with pytest.raises(SettingsError, match="flow 'empty' has no nodes"):
            app.flow("empty").start()
        with pytest.raises(SettingsError, match="is a text"):
            app.flow(3)  # type: ignore[arg-type]

    def test_arguments_that_do_not_fit(self, mode: str) -> None:
        for sig, after in ((one.s(1), "a"), (minus.s(), {"middle": "a"}), (minus.s(left=1), {"right": "a", "x": "a"})):
            flow = app.flow()
            flow.add(one.s(), name="a")
            flow.add(sig, after=after)
            with pytest.raises(TypeError):
                flow.start()

    def test_what_cannot_be_packed(self, mode: str) -> None:
        flow = app.flow()
        flow.add(one.s(object()))
        with pytest.raises(TypeError, match=r"args\[0\]"):
            flow.start()

    def test_more_calls_than_a_flow_may_have(self, url: str) -> None:
        flow = app.flow()
        flow.add(group(one.s(n) for n in range(11)))
        with app.testing.isolated(url), app.configured(max_flow_calls=10):
            with pytest.raises(SettingsError, match=r"a flow has 10 calls at most \(max_flow_calls\)"):
                flow.start()
            with pytest.raises(SettingsError, match=r"a batch has 10 calls at most \(max_flow_calls\)"):
                fill(6, 5)
            fill(6, 4)

    def test_one_that_is_gone(self, mode: str) -> None:
        with pytest.raises(FlowGone, match="flow nobody is not on the server"):
            _ = app.flows["nobody"].state
        with pytest.raises(FlowGone):
            app.flows["nobody"].get(timeout=1)
        with pytest.raises(FlowGone):
            _ = app.flows["nobody"].nodes
        with pytest.raises(SettingsError):
            _ = app.flows["no id"]
        assert not app.flows["nobody"].cancel()


class TestWorker:
    def test_it_is_cancelled(self, url: str) -> None:
        with app.testing.worker(url=url):
            flow = app.flow("slow")
            first = flow.add(one.s().set(countdown=600))
            flow.add(add.s(1), after=first)
            run = flow.start()
            found = app.flows[run.id]
            assert [each.id for each in app.flows] == [run.id]
            assert found.nodes == {"one": "started", "add": "waiting"}
            assert found.cancel()
            with pytest.raises(TaskRevoked):
                run.get(timeout=60)
            assert (found.state, found.cancel()) == ("cancelled", True)

    def test_its_values_are_found_again(self, url: str) -> None:
        with app.testing.isolated(url):
            flow = app.flow()
            flow.add(add.s(1), after=flow.add(one.s(4)))
            run = flow.start()
            with app.testing.worker() as worker:
                assert app.flows[run.id].get(timeout=60) == {"add": 5}
                worker.wait_idle(timeout=60)
                with pytest.raises(FlowGone, match=r"ask for one by its name, app\.flows\[id\]\[name\]"):
                    app.flows[run.id].get(timeout=60)
                assert app.flows[run.id]["add"].get(timeout=60) == 5

    def test_a_dead_letter_carries_it_on(self, url: str) -> None:
        failing = [True]

        @app.task(name="mends")
        def mends() -> int:
            if failing[0]:
                raise Broken("yet")
            return 5

        with app.testing.worker(url=url) as worker:
            flow = app.flow()
            flow.add(add.s(1), after=flow.add(mends.s()))
            run = flow.start()
            with pytest.raises(Broken):
                run.get(timeout=60)
            worker.wait_idle(timeout=60)
            failing[0] = False
            queue = app.client.queue(None)
            with app.client.link() as link:
                (letter,) = dead_letters(link, queue)
                redrive(link, queue, letter)
            wait_until(lambda: run.state == "succeeded", 60, "its end")
            assert app.flows[run.id]["add"].get(timeout=60) == 6

    def test_it_makes_no_progress(self, url: str) -> None:
        """It is ended by workers, loudly, after `flow_expires_s`."""
        with app.testing.isolated(url), app.configured(flow_expires_s=600.0):
            flow = app.flow()
            flow.add(add.s(1).on_error(note.si("expired")), after=flow.add(one.s().set(queue="unread")))
            run = flow.start()
            listed = f"{{{app.settings.namespace}:0}}::flows"
            (score,) = app.client.ask(("ZSCORE", listed, run.id))
            assert 590_000 < float(score) - app.client.now_ms() <= 600_000
            app.client.ask(("ZADD", listed, "XX", 1, run.id))  # as if so much time had passed
            with app.testing.worker("default"):
                wait_until(lambda: run.state == "expired", 60, "its end")
                wait_until(lambda: noted == [["expired"]], 60, "the errback")
                assert "FlowExpired" in repr(run.get(timeout=60, propagate=False)["add"])
