"""Signatures, chains, groups and chords as data: what they are made of, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from msgpack import ExtType, packb  # type: ignore[import-untyped, unused-ignore]

import rsq
from rsq import App, SettingsError, Signature, chain, chord, codec, group, signature
from rsq.app import shared
from rsq.canvas.data import DEEPEST
from rsq.canvas.signature import Chain, Chord
from rsq.errors import DecodeError, EncodeError

app = App("canvas", url="redis://localhost:1")


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(queue="mail", name="canvas.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
def told(task_id: str) -> None: ...


# -- one signature


def test_a_signature_is_its_parts() -> None:
    made = add.signature((2, 2), {"b": 1}, countdown=10)
    assert (made.task, made.args, made.kwargs, made.options) == (add.name, (2, 2), {"b": 1}, {"countdown": 10})
    assert add.s(2, b=3) == add.signature((2,), {"b": 3})
    assert add.si(2) == add.signature((2,), immutable=True)
    assert signature(add.name, (2,), countdown=3) == add.signature((2,), countdown=3)
    assert signature(add, (2,)) == add.s(2) == signature(add.s(2))
    assert repr(add.s(2, b=[1])) == f"{add.name}(2, b=[1])"


def test_set_and_link_change_it_in_place() -> None:
    made: Any = add.s(1)
    assert made.set(countdown=3, link=add.s(2), link_error=[told.s(), told.s()]) is made
    assert made.options == {"countdown": 3}
    assert made.links == (add.s(2),)
    assert made.errbacks == (told.s(),), "twice the same is once"
    callback = add.s(5)
    assert made.link(callback) is callback
    assert made.on_error(told.si("x")) is made
    assert made.links == (add.s(2), add.s(5))
    assert made.errbacks == (told.s(), told.si("x"))


def test_a_clone_is_another_one_with_more_in_front() -> None:
    made = add.s(2, b=1)
    clone = made.clone((1,), {"b": 3}, countdown=2)
    assert clone == add.signature((1, 2), {"b": 3}, countdown=2)
    assert made == add.s(2, b=1)
    assert add.si(2).clone((1,), {"b": 3}, countdown=2) == add.signature((2,), immutable=True, countdown=2)


def test_called_it_runs_the_function_here() -> None:
    assert add.s(2, 3)() == 5
    assert add.s(3)(2) == 5
    assert add.si(3, 4)(2) == 7
    with pytest.raises(rsq.UnknownTask, match="nobody"):
        signature("nobody", app=app)()


def test_what_names_no_app_is_of_the_project() -> None:
    assert signature("x")._flows is shared.app.flows
    assert add.s()._flows is app.flows
    assert (signature("x") | add.s())._flows is app.flows


# -- chains, groups and chords


def test_chains_become_one() -> None:
    made = add.s(1) | add.s(2) | (add.s(3) | add.s(4))
    assert made == chain(add.s(1), chain(add.s(2), add.s(3)), add.s(4)) == chain([add.s(n) for n in (1, 2, 3, 4)])
    assert isinstance(made, Chain)
    assert made.tasks == tuple(add.s(n) for n in (1, 2, 3, 4))
    assert repr(add.s(1) | total.s()) == f"{add.name}(1) | canvas.total()"


def test_what_follows_a_group_makes_a_chord_of_it() -> None:
    header = group(add.s(n) for n in range(3))
    made = header | total.s()
    assert isinstance(made, Chord)
    assert made == chord(header, total.s()) == chord([add.s(n) for n in range(3)], total.s())
    assert made.header is header
    assert made.body == total.s()
    longer = made | add.s(1)
    assert isinstance(longer, Chord)
    assert longer.body == total.s() | add.s(1)
    assert isinstance(group([add.s(1)]) | group([add.s(2)]), Chord)
    assert type(add.s(1) | header) is Chain
    assert type(add.s(1) | header | total.s()) is Chain
    row = chain(*[group(add.s(1), add.s(2)) for _ in range(9)])
    assert isinstance(row, Chord)
    assert len(row.tasks) == 9


def test_options_and_arguments_go_to_what_starts_first() -> None:
    made = (group(add.s(1), add.s(2) | add.s(3)) | total.s()).clone((7,), {"b": 1}, countdown=5)
    assert (
        made
        == group(add.signature((7, 1), {"b": 1}, countdown=5), add.signature((7, 2), {"b": 1}, countdown=5) | add.s(3))
        | total.s()
    )
    assert chain(add.s(1), add.s(2)).set(immutable=True) == add.si(1) | add.s(2)
    assert group(add.s(1), add.si(2)).clone((9,)) == group(add.s(9, 1), add.si(2))


def test_changing_a_canvas_leaves_the_parts_of_others_alone() -> None:
    part = add.s(1)
    chain(part, add.s(2)).set(countdown=3)
    group(part).set(queue="x")
    chain(add.s(2), part).link(add.s(3))
    assert part == add.s(1)


def test_the_id_of_a_chain_is_that_of_its_last_step() -> None:
    made = (add.s(1) | add.s(2)).set(task_id="mine")
    assert made == add.s(1) | add.signature((2,), task_id="mine")
    assert group(add.s(1)).set(task_id="mine").options == {"task_id": "mine"}


def test_links_of_a_chain_are_those_of_its_last_step() -> None:
    made = add.s(1) | add.s(2)
    made.link(add.s(3))
    outer = made | add.s(4)
    assert outer == chain(add.s(1), add.s(2).set(link=add.s(3)), add.s(4))


def test_a_chain_with_an_errback_of_its_own_stays_one() -> None:
    inner = (add.s(1) | add.s(2)).on_error(told.s())
    assert isinstance(inner | add.s(3), Chain)
    assert (inner | add.s(3)).tasks == (inner, add.s(3))  # type: ignore[attr-defined]


def test_a_group_can_be_skewed() -> None:
    waits = [member.options["countdown"] for member in group(add.s(n) for n in range(5)).skew(start=1, stop=4)]
    assert waits == [1, 2, 3, 1, 2]


# -- frozen


def test_freezing_fixes_all_ids() -> None:
    with app.testing.eager():
        made = group(add.s(1), add.s(2)) | total.s()
        frozen: Any = made.freeze()
        assert made.freeze().id == frozen.id
        handle: Any = made.delay()
        assert (handle.id, handle.parent) == (frozen.id, frozen.parent)
        assert [each.id for each in handle.parent.results] == [each.id for each in frozen.parent.results]
        assert frozen.get() == 3
        assert made.delay().id != frozen.id, "started again it has new ids"
        assert made.freeze("mine").id == "mine"


def test_a_part_that_stands_twice_has_two_ids() -> None:
    with app.testing.eager():
        part = add.s(1, 1)
        made = group(part, part)
        frozen = made.freeze()
        assert len({each.id for each in frozen.results}) == 2
        assert made.delay().get() == [2, 2]


def test_frozen_before_it_is_combined_it_keeps_its_id() -> None:
    with app.testing.eager():
        part = add.s(1, 2)
        handle = part.freeze()
        result = chain(part, add.s(3)).delay()
        assert result.get() == 6
        assert result.parent == handle
        assert handle.get() == 3


def test_arguments_given_at_the_start_do_not_hide_that_it_was_frozen() -> None:
    with app.testing.eager():
        made = add.s(1) | add.s(2)
        frozen = made.freeze()
        assert made.delay(1).id == frozen.id
        assert made.delay(1).id != frozen.id


# -- as data


EVERYTHING = (
    chain(
        add.signature((1, 2.5, {"a": None}), {"b": [1]}, countdown=3, queue="mail", immutable=True),
        group(add.s(), add.s(1) | total.s()).on_error(told.s()),
        add.s().set(link=add.s(1) | add.s(2), link_error=told.s()),
    )
    .set(link=add.s(9))
    .on_error(told.si("x"))
)


@pytest.mark.parametrize("way", ["dict", "codec", "pickle", "deepcopy"])
@pytest.mark.parametrize(
    "made", [add.s(1, b=2), add.si(), group(), chord([add.s(1)], total.s()), EVERYTHING], ids=lambda made: made.kind
)
def test_a_signature_comes_back_as_it_was(made: Signature[Any], way: str) -> None:
    ways: dict[str, Callable[[Any], Any]] = {
        "dict": lambda each: Signature.from_dict(dict(each)),
        "codec": lambda each: codec.decode(codec.encode([each]))[0],
        "pickle": lambda each: pickle.loads(pickle.dumps(each)),
        "deepcopy": copy.deepcopy,
    }
    again = ways[way](made)
    assert type(again) is type(made)
    assert again == made
    assert dict(again) == dict(made)


def test_the_dict_is_plain() -> None:
    plain = dict(chord([add.s(1)], total.s(b=2).on_error(told.s())).set(countdown=3))
    assert plain["subtask_type"] == "chord"
    header, body = plain["tasks"]
    (member,) = header["tasks"]
    assert member == {
        "task": add.name,
        "args": [1],
        "kwargs": {},
        "options": {"countdown": 3},
        "immutable": False,
        "subtask_type": None,
        "tasks": [],
    }
    assert body["options"]["link_error"][0]["task"] == told.name
    assert add.s(1)["args"] == [1]


def test_the_values_in_it_may_be_of_any_kind_that_travels() -> None:
    made = add.s(datetime(2026, 1, 1, tzinfo=timezone.utc), {1, 2}).set(eta=datetime(2027, 1, 1, tzinfo=timezone.utc))
    assert codec.decode(codec.encode(made)) == made


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], r"the dict of a signature is a map with task, args, kwargs, options, not \[\]"),
        ({"task": "x", "fun": 1}, "the dict of a signature has no 'fun'; there are: task, args"),
        ({"task": "x", "args": "ab"}, "args of a signature cannot be 'ab'"),
        ({"task": 5}, "task of a signature cannot be 5"),
        ({"task": "two words"}, "a task cannot be named 'two words'"),
        ({}, "a task cannot be named ''"),
        ({"task": "x", "kwargs": {1: 2}}, r"kwargs of a signature are named by texts, not as in {1: 2}"),
        ({"task": "x", "options": {"evil": 1}}, "no option of a call is called 'evil'"),
        ({"task": "x", "options": {"queue": "a:b{c}"}}, "queue"),
        ({"task": "x", "options": {"link": {"task": "y"}}}, "link in the dict of a signature is a list of dicts"),
        ({"task": "x", "options": {"link": [5]}}, "is a map with task"),
        ({"task": "x", "subtask_type": "xchain"}, "subtask_type of a signature is None, 'chain', 'chord' or 'group'"),
        ({"subtask_type": "chain"}, "a chain needs a step"),
        ({"subtask_type": "chord", "tasks": [{"task": "x"}]}, "a chord begins with a group"),
    ],
)
def test_a_dict_that_is_none(given: Any, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        Signature.from_dict(given)
    if isinstance(given, dict):
        with pytest.raises(DecodeError, match=text):
            codec.decode(packb(ExtType(13, codec.encode(given))))


def test_it_is_not_nested_without_end() -> None:
    made: Any = add.s(1)
    for _ in range(DEEPEST + 1):
        made = group(made)
    for use in (dict, codec.encode, lambda each: each.delay()):
        with app.testing.eager(), pytest.raises((SettingsError, EncodeError), match=f"more than {DEEPEST} canvases"):
            use(made)


def test_a_chain_of_ten_thousand_is_no_deeper_than_one_of_two() -> None:
    made: Any = add.s(0)
    for number in range(2000):
        made = made | add.s(number)
    longer = chain(made, *[add.s(1) for _ in range(8000)])
    assert len(longer.tasks) == 10_001
    assert codec.decode(codec.encode(longer)) == longer
    assert repr(longer).endswith("... 9991 more")


# -- mistakes


anything: Any = add


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: chain([]), "a chain needs a step"),
        (lambda: chain(anything, add.s(1)), r"chain takes signatures, write add.s\(...\), not <Task"),
        (lambda: add.s(1) | anything, r"what follows \| takes signatures, write add.s\(...\)"),
        (lambda: add.s(1) | anything.name, "such as add.s"),
        (lambda: group(dict(anything.s())), "group takes signatures; of a dict make one by Signature.from_dict"),
        (lambda: group(add.s(1), anything.name), "group takes signatures, such as add.s"),
        (lambda: chord([add.s(1)], anything.s), "the body of a chord takes signatures"),
        (lambda: add.s(1).link(anything), r"link takes signatures, write add.s"),
        (lambda: add.s(1).set(evil=1), "no option of a call is called 'evil'"),
        (lambda: add.s(1).set(counddown=1), "did you mean countdown"),
        (lambda: signature({"task": "x"}), "a dict is no signature by itself"),
        (lambda: signature(5), "a signature is made of a task or its name, not of 5"),
        (lambda: chord([add.s(1)]).delay(), "this chord has no body"),
        (lambda: chain(add.s(1), add.s(2).on_error(add.s(1) | add.s(2))).delay(), "an errback is the signature of one"),
        (lambda: chain(add.s(1), add.s(2).on_error(told.s().set(link=told.s()))).delay(), "no callbacks of its own"),
        (lambda: group(add.s(1).set(task_id="a"), add.s(2).set(task_id="a")).delay(), "'a' stands twice"),
        (
            lambda: chain(add.s(1), add.s(2).set(debounce=3, dedupe_key="x")).delay(),
            "debounce or on_duplicate='replace'",
        ),
        (lambda: add.s(1, 2).on_error(add.s(2).set(dedupe_key="{a}")).delay(), "looks at what an errback is told"),
    ],
)
def test_mistakes_are_told_where_they_are_made(make: Callable[[], object], text: str) -> None:
    with app.testing.eager(), pytest.raises(SettingsError, match=text):
        make()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: chain(add.s(1, 2), add.s(1, 2)).delay(), TypeError, r"add\(\) too many positional arguments"),
        (lambda: chain(add.s(), add.s()).delay(), TypeError, r"add\(\) missing a required argument"),
        (lambda: group(add.s(1), add.s(1, c=2)).delay(), TypeError, "unexpected keyword argument 'c'"),
        (lambda: chain(add.s(1), add.s(b=object())).delay(), EncodeError, r"kwargs\['b'\]: cannot serialise"),
        (lambda: codec.encode([add.s({"x": object()})]), EncodeError, r"value\[0\].*cannot serialise"),
    ],
)
def test_arguments_that_do_not_fit_are_told_at_the_start(make: Callable[[], object], error: Any, text: str) -> None:
    with app.testing.eager(), pytest.raises(error, match=text):
        make()


def added(x: int, y: int) -> int:
    return x + y


class TestOfTwoApps:
    def test_a_part_is_sent_as_its_own_app_says(self, url: str) -> None:
        here, there = App("here", url=url), App("there", url=url)
        here_add, there_add = here.task(name="here.add")(added), there.task(name="there.add", queue="mail")(added)
        handle = (here_add.s(1, 2) | there_add.s(3) | here_add.s(4)).delay()
        calls = [(node.task, node.queue) for node in here.flows[handle.id].calls()]
        assert calls == [("here.add", "default"), ("there.add", "mail"), ("here.add", "default")]

    @pytest.mark.parametrize("more", [{"url": "redis://nowhere"}, {"namespace": "elsewhere"}], ids=str)
    def test_one_of_another_server_is_refused(self, url: str, more: dict[str, Any]) -> None:
        here, there = App("here", url=url), App("there", **{"url": url, **more})
        first, other = here.task(name="first")(added), there.task(name="other")(added)
        graph, linked = here.flow(), first.s(1, 2)
        graph.add(other.s(1, 2))
        linked.link(other.s(3))
        for start in (
            (first.s(1, 2) | other.s(3)).delay,
            group(first.s(1, 2), other.s(3, 4)).delay,
            first.s(1, 2).on_error(other.s(3)).delay,
            linked.delay,
            graph.start,
        ):
            with pytest.raises(SettingsError, match="other belongs to app 'there', and the canvas to app 'here'"):
                start()
        with pytest.raises(SettingsError, match="other belongs to app 'there'"), here.batch() as batch:
            batch.add(other.s(1, 2))
