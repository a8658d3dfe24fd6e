"""`rsq events`: what is in a stream, and its events once more, each of them once in their new group."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from rsq import App
from rsq.broker.event_stream import EventStream
from rsq.cli.main import main
from rsq.errors import BrokerUnavailable
from rsq.streams import feeding
from rsq.streams import replay as replay_module
from rsq.streams.feeding import Feed
from rsq.streams.replay import Replay, source_of
from tests.helpers import wait_until
from tests.servers import Server

pytestmark = pytest.mark.leaves("{events}", "{others}")

STREAM = "{events}"

ran: list[str] = []

app = App("replaying")


@app.on(STREAM, group="g", queue="replayed", id_field="n")
def on_event(event: Any) -> None:
    ran.append(event["n"])


@app.on("{others}", group="a", queue="others")
def on_other(event: Any) -> None: ...


@app.on("{others}", group="b", queue="others")
def on_another(event: Any) -> None: ...


@pytest.fixture(autouse=True)
def connected(url: str) -> Iterator[None]:
    ran.clear()
    app.configure(url=url)
    yield
    app.close()


def add(redis: Any, *values: object) -> None:
    """Events 1-0, 2-0 and so on."""
    for value in values:
        redis.xadd(STREAM, {"n": str(value)}, id=f"{value}-0")


def rsq(url: str, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, ["-A", __name__, "--url", url, "events", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def replay(url: str, *arguments: str, code: int = 0) -> str:
    return rsq(url, "replay", STREAM, *arguments, code=code)


def test_events_run_again_from_one_on(server: Server, redis: Any, url: str) -> None:
    add(redis, *range(1, 8))
    with app.testing.worker(queues=["replayed"], url=server.url) as worker:
        worker.wait_idle(60)
        assert ran == [*"1234567"]
        told = replay(url, "--group", "again", "--from", "5")
        worker.wait_idle(60)
        assert ran == [*"1234567", *"567"]
        assert "3 events of stream {events} went into queue replayed as those of group again" in told
        replay(url, "--group", "more", "--from", "0")
        worker.wait_idle(60)
        assert ran[10:] == [*"1234567"]
        assert redis.hkeys(app.client.queue("replayed").keys.sources) == [b"g:{events}"]
    groups = {each["name"] for each in redis.xinfo_groups(STREAM)}
    assert groups == {b"g"}, "a replay leaves no group behind, which would hold up who trims"


def test_a_replay_that_was_ended_goes_on(server: Server, redis: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add(redis, *range(1, 8))
    feed = Feed.events

    def cut_off(self: Feed, position: str, events: Any) -> Any:
        feed(self, position, events)
        if position == "1-0":
            raise BrokerUnavailable("gone")
        return feed(self, position, events)

    with app.testing.worker(queues=["replayed"], url=server.url) as worker:
        with monkeypatch.context() as patch:
            patch.setattr(Feed, "events", cut_off)
            with pytest.raises(BrokerUnavailable):
                Replay(app, source_of(app, STREAM, None), "again", "1").run(lambda _: None)
        replay(url, "--group", "again", "--from", "1")
        worker.wait_idle(60)
    assert sorted(ran) == sorted([*"1234567"] * 2), "once for each group"
    told = replay(url, "--group", "again", "--from", "1", code=2)
    assert "group again has been replayed up to 7-0: name another one" in told


def test_a_replay_waits_for_room(server: Server, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "WINDOW", 2)
    monkeypatch.setattr(replay_module, "LOOK_S", 0.01)
    add(redis, *range(1, 8))
    said: list[str] = []
    with app.testing.worker(queues=["replayed"], url=server.url) as worker:
        worker.wait_idle(60)
        app.pause("replayed")

        def go_on(what: str) -> None:
            said.append(what)
            app.resume("replayed")

        assert Replay(app, source_of(app, STREAM, None), "again", "1").run(go_on) == 7
        worker.wait_idle(60)
    assert len(ran) == 14
    assert said[0] == "waiting for room in queue replayed"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{events}", "--group", "g", "--from", "0"], "group g has its own function"),
        (["{events}", "--group", "there", "--from", "0"], "group there of stream {events} is there already"),
        (["{events}", "--group", "a b", "--from", "0"], "group 'a b' cannot be used"),
        (["{events}", "--group", "x", "--from", "$"], "--from takes the id of an event"),
        (["{events}", "--group", "x", "--from", "now"], "'now' is no id"),
        (["{events}", "--group", "x", "--from", "0", "--of", "y"], "nothing reads stream {events} for group y"),
        (["{none}", "--group", "x", "--from", "0"], "nothing in this app reads stream {none}"),
        (["{others}", "--group", "x", "--from", "0"], "say with --of which one: a, b"),
        (["{others}", "--group", "x", "--from", "0", "--of", "a"], "there is no stream {others}"),
    ],
)
def test_a_mistake_is_told(redis: Any, url: str, arguments: list[str], said: str) -> None:
    add(redis, 1)
    redis.xgroup_create(STREAM, "there", "0")
    told = rsq(url, "replay", *arguments, code=2)
    assert said in told
    assert told.count("\n") == 1
    assert not redis.hkeys(app.client.queue("replayed").keys.sources)


def test_what_is_in_a_stream(redis: Any, url: str) -> None:
    add(redis, *range(1, 301))
    assert [line.split()[0] for line in rsq(url, "tail", STREAM, "-n", "2").splitlines()] == ["299-0", "300-0"]
    lines = rsq(url, "tail", STREAM, "-n", "250", "--json").splitlines()
    assert [json.loads(line)["event"]["n"] for line in lines] == [str(number) for number in range(51, 301)]
    lines = rsq(url, "tail", STREAM, "--from", "7", "-n", "150").splitlines()
    assert [line.split()[0] for line in lines] == [f"{number}-0" for number in range(7, 157)]
    assert rsq(url, "tail", STREAM, "-n", "0") == ""
    assert "there is no stream {none}" in rsq(url, "tail", "{none}", code=2)
    assert redis.keys("*") == [STREAM.encode()]


def test_what_others_write_cannot_touch_the_terminal(redis: Any, url: str) -> None:
    redis.xadd(STREAM, {"n": "\x1b[2J\nx", b"\xff": "v" * 1000})
    (line,) = rsq(url, "tail", STREAM).splitlines()
    assert "n=\\x1b[2J\\nx" in line
    assert len(line) < 500
    (line,) = rsq(url, "tail", STREAM, "--json").splitlines()
    assert json.loads(line)["event"] == {"n": "\x1b[2J\nx", "\\xff": "v" * 1000}


def test_an_event_of_many_fields_is_one_line_that_can_be_read(redis: Any, url: str) -> None:
    redis.xadd(STREAM, {f"n{number}": "v" for number in range(10_000)})
    (line,) = rsq(url, "tail", STREAM).splitlines()
    assert line.endswith("n49=v  ... and 9950 more")
    (line,) = rsq(url, "tail", STREAM, "--json").splitlines()
    assert len(json.loads(line)["event"]) == 10_000


def test_what_comes_is_followed(redis: Any, url: str) -> None:
    command = [sys.executable, "-m", "rsq", "--url", url, "events", "tail", STREAM, "--follow", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        try:
            # It may be waited for before it is there.
            wait_until(lambda: any(each["cmd"] == "xread" for each in redis.client_list()), 60)
            add(redis, 1, 2)
            lines = [tail.stdout.readline() for _ in range(2)]
        finally:
            tail.kill()
    assert [json.loads(line)["id"] for line in lines] == ["1-0", "2-0"]


def test_a_replay_that_others_end_is_told_apart(redis: Any, server: Server) -> None:
    add(redis, 1)
    events = EventStream(app.client.endpoint, STREAM, "again")
    assert events.ended() == ""
    events.tell("1-0")
    events.end("1-0")
    assert (events.ended(), redis.xinfo_groups(STREAM)) == ("1-0", [])
    events.close()
