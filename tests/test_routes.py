"""Where calls go that name no queue: what routes say, and what is refused where they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from rsq import App, SettingsError
from rsq.worker.portrait import queues_line
from tests.servers import Server


@pytest.fixture
def app(server: Server) -> Iterator[App]:
    app = App("routed", url=server.url)

    @app.task(name="shop.mail.send")
    def send(to: str = "") -> None: ...

    @app.task(name="shop.images.scale")
    def scale() -> None: ...

    @app.task(name="shop.images.urgent", queue="urgent")
    def urgent() -> None: ...

    yield app
    app.close()


def queue_of(app: App, name: str, *args: Any, **options: Any) -> str:
    return app.get_task(name).message(args, **options)[0].queue


def test_patterns(app: App) -> None:
    app.routes = {"shop.mail.*": {"queue": "mail"}, "*.scale": "heavy", "*": {"queue": "rest"}}
    assert queue_of(app, "shop.mail.send") == "mail"
    assert queue_of(app, "shop.images.scale") == "heavy"
    assert app.task_by_name("elsewhere.task").message()[0].queue == "rest"
    assert app.routes == {"shop.mail.*": {"queue": "mail"}, "*.scale": "heavy", "*": {"queue": "rest"}}


def test_what_names_its_queue_is_not_routed(app: App) -> None:
    app.routes = {"*": {"queue": "rest"}}
    assert queue_of(app, "shop.images.urgent") == "urgent"
    assert queue_of(app, "shop.mail.send", queue="mine") == "mine"


def test_without_a_fitting_route_the_default_queue(app: App) -> None:
    app.routes = {"nothing": {"queue": "rest"}, re.compile(r"shop\.(mail|post)"): "part"}
    assert queue_of(app, "shop.mail.send") == "default"
    app.routes = None
    assert queue_of(app, "shop.mail.send") == "default"


def test_a_function(app: App) -> None:
    def route(name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **others: Any) -> Any:
        assert (options, task.name) == ({}, name)
        if args == ("you",):
            return {"queue": "you"}
        return "scaled" if name.endswith("scale") else None

    app.routes = [route, ("shop.*", {"queue": "shop"}), {re.compile("other.*"): "other"}]
    assert queue_of(app, "shop.mail.send", "you") == "you"
    assert queue_of(app, "shop.mail.send", "me") == "shop"
    assert queue_of(app, "shop.images.scale") == "scaled"
    assert app.task_by_name("other.task").message()[0].queue == "other"


def test_a_bulk_goes_to_several_queues_and_answers_in_order(app: App) -> None:
    app.routes = lambda name, args, kwargs, options, task=None: f"mail-{args[0]}"
    handles = app.get_task("shop.mail.send").map_async([("a",), ("b",), ("a",), ("c",)])
    assert [handle.queue for handle in handles] == ["mail-a", "mail-b", "mail-a", "mail-c"]
    with app.client.link() as link:
        assert link.call("XLEN", app.client.queue("mail-a").keys.stream()) == 2


def test_a_worker_takes_the_routed_queues_too(app: App) -> None:
    app.routes = [{"a": "mail", "b": {"queue": "default"}}, lambda *_: None]
    assert app.queues() == ["default", "urgent", "mail"]


@pytest.mark.parametrize(
    ("routes", "what"),
    [
        ("mail", "routes take a map .* not 'mail'"),
        (["mail"], "routes take a map .* not 'mail'"),
        ({"*": {"queue": "two words"}}, "the route of '\\*': queue name 'two words' cannot be used"),
        ({"*": {"queue": "mail", "priority": 3}}, "the route of '\\*': a route names a queue and nothing else"),
        ({"*": None}, "the route of '\\*': a route is a queue's name"),
        ({"*": {}}, "the route of '\\*': a route is a queue's name"),
        ({3: "mail"}, "a route begins with a pattern of task names"),
        ([("*", "mail", 1)], "routes take a map"),
    ],
)
def test_mistakes_are_refused_where_they_are_written(app: App, routes: Any, what: str) -> None:
    app.routes = {"*": "kept"}
    with pytest.raises(SettingsError, match=what):
        app.routes = routes
    assert queue_of(app, "shop.mail.send") == "kept"


def test_a_function_that_gives_no_queue_is_named(app: App) -> None:
    def route(name: str, *_: Any, **__: Any) -> Any:
        return ["mail"]

    app.routes = route
    with pytest.raises(SettingsError, match=r"what route\(\) gives for shop\.mail\.send: a route is a queue's name"):
        app.get_task("shop.mail.send").delay()


def test_queues_that_a_worker_does_not_read() -> None:
    shop = App("shop")
    shop.task(name="a")(test_a_worker_says_so_at_its_start)
    shop.task(name="b", queue="mail")(test_a_worker_says_so_at_its_start)
    assert shop.unread(["celery"]) == ["default", "mail"]
    assert shop.unread(["mail", "default"]) == []
    shop.routes = {"a": "first"}
    assert shop.unread(["mail"]) == ["first"]
    shop.routes = [lambda name, *rest, **more: "anywhere"]
    assert shop.unread(["x"]) == ["mail"], "what a function decides is not known"


def test_a_worker_says_so_at_its_start() -> None:
    assert queues_line(["x", "y"], ["mail"]) == "x, y; not read here, though calls go there: mail"
    assert queues_line(["x", "mail"], []) == "x, mail"
