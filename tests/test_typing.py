"""What mypy accepts and refuses of code that uses rsq: a task keeps the signature of its function."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import pytest
from mypy import api

PRELUDE = """
from __future__ import annotations
import rsq
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any
from rsq import App, AsyncResult, Task, task

app = App("shop")

@app.task
def add(a: int, b: int = 0) -> int:
    return a + b

@app.task(queue="mail", max_retries=5)
def send(user: str, *, urgent: bool = False) -> None: ...

@app.task
async def fetch(url: str) -> bytes:
    return url.encode()

@app.task(queue="mail")
async def fetch_later(url: str) -> list[str]:
    return [url]

@app.task
async def of_anything(a: Any, b: dict[str, Any]) -> int:
    return len(b)

@app.task(bind=True)
def bound(self: Task[..., str], number: int) -> str:
    return self.request.id * number

@app.task(bind=True, queue="mail")
async def bound_async(self: Task[..., int], number: int) -> int:
    return self.request.attempt

@app.task(bind=True)
async def bound_to_anything(self: Any, a: Any) -> int:
    return 1

@app.task
def counts(n: int) -> Generator[int, None, str]:
    yield n
    return "end"

@app.task
def of_any(rows: list[Any]) -> Generator[int, None, str]:
    yield 1
    return "end"

@app.task(bind=True, queue="mail")
def bound_counts(self: Any, n: int) -> Generator[int, None, str]:
    yield n
    return "end"

@app.task(queue="mail")
async def acounts(n: int) -> AsyncIterator[int]:
    yield n

@app.task
async def agenerates(n: int) -> AsyncGenerator[bytes, None]:
    yield b""

@task
def shared(a: int) -> str:
    return str(a)

@task(queue="mail")
def shared_with_options(a: int) -> str:
    return str(a)

@rsq.task(bind=True)
def shared_bound(self: Task[..., str], a: int) -> str:
    return str(a)

@rsq.task
async def shared_async(a: int) -> str:
    return str(a)
"""

ACCEPTED = {
    "call": "x: int = add(1, 2)",
    "positional": "add.delay(1, 2)",
    "keyword": "add.delay(1, b=2)",
    "default": "add.delay(1)",
    "options": "send.delay('me', urgent=True)",
    "bound": "bound.delay(1)\nbound(1)\nbound_async.delay(number=1)\nshared_bound.delay(1)",
    "shared": "shared.delay(1)\nshared_with_options.delay(a=1)",
    "many": "add.map_async([(1, 2), (3,)])",
    "apply_async": "add.apply_async((1,), {'b': 2}, countdown=3, queue='q')",
    "handle": "r: AsyncResult[int] = add.delay(1)\nn: int = r.get(timeout=1)",
    "async twins": """
        async def main() -> bytes:
            handle = await fetch.adelay("http://x")
            other: AsyncResult[int] = await add.aapply_async((1,), countdown=1)
            return await handle.aget()
        """,
    "awaited calls": """
        async def main() -> bytes:
            lines: list[str] = await fetch_later("x")
            number: int = await of_anything(1, {}) + await bound_to_anything(1) + await bound_async(number=1)
            text: str = await shared_async(a=1)
            return await fetch("x")
        """,
    "async def as any task": """
        def send_all(task: Task[[str], bytes], urls: list[str]) -> list[AsyncResult[bytes]]:
            return [task.delay(url) for url in urls]
        send_all(fetch, ["x"])
        """,
    "request and retry": """
        @app.task(bind=True)
        def again(self: Task[..., str], a: int) -> str:
            if self.request.attempt < 3:
                self.retry(countdown=1)
            return f"{a} at attempt {self.request.attempt}"
        again.delay(1)
        """,
    "words of Celery": """
        from datetime import timedelta
        from uuid import uuid4

        @app.task(bind=True, retry_kwargs={"max_retries": 5})
        def charge(self: Task[..., None], order: int) -> None:
            most: int | None = self.max_retries
            self.update_state(state="PROGRESS", meta={"current": 1})
            self.progress(1, 2)
            try:
                self.retry(exc=ValueError, countdown=timedelta(seconds=3))
            except self.MaxRetriesExceededError as error:
                print(error, self.request.args, self.request.delivery_info["routing_key"], self.request.is_eager)

        async def look(handle: AsyncResult[int]) -> None:
            state: str = await handle.astate()
            if await handle.aready() and handle.status == "SUCCESS":
                print(await handle.aresult(), await handle.aprogress(), handle.task_id)

        request = rsq.current_request()
        if request is not None:
            print(request.id, request.hostname)
        charge.apply_async(None, {"order": 1}, task_id=uuid4())
        app.send_task("x", None)
        app.set_default()
        """,
    "canvas": """
        from rsq import GroupResult, Signature, chain, chord, group, signature

        one: Signature[int] = add.s(1).set(countdown=3).on_error(send.si("x"))
        n: int = (send.s("x") | add.s(1)).delay().get()
        numbers: list[int] = group(add.s(i) for i in range(3)).delay(1).get()
        total: int = chord([add.s(1), fetch.s("x")], add.s())().get()
        r: GroupResult[int] = group(add.s(1), add.s(2)).delay()
        first: int = r[0].get()
        chain(*[add.s(n) for n in range(3)]).apply_async(link=add.s())
        signature("x", (1,), countdown=3) | group(one, one)

        async def start() -> int:
            return await (await add.s(1).adelay()).aget()
        """,
    "generators": """
        for seen in counts.delay(1).stream():
            if isinstance(seen, rsq.Item):
                number: int = seen.value
        numbers: list[int] = [*counts(1)]
        handle: AsyncResult[str] = counts.delay(1)
        counts.s(1) | add.si(1)

        async def follow() -> None:
            async for seen in (await acounts.adelay(1)).stream():
                print(seen)
            async for number in acounts(1):
                print(number + 1)
        """,
    "testing": """
        with app.testing.eager(propagate=False):
            add.delay(1)
        with app.testing.worker(["mail"]) as worker:
            worker.wait_idle(timeout=3)
        """,
}

REFUSED = {
    "wrong type": ('add.delay("x")', 'Argument 1 to "delay" of "Task" has incompatible type "str"; expected "int"'),
    "wrong type, async twin": ('add.adelay("x")', 'Argument 1 to "adelay" of "Task" has incompatible type "str"'),
    "wrong type, call": ('add("x")', 'Argument 1 to "__call__" of "Task" has incompatible type "str"'),
    "wrong type, options": ("send.delay(1)", 'Argument 1 to "delay" of "Task" has incompatible type "int"'),
    "wrong type, bound": ('bound.delay("x")', 'Argument 1 to "delay" of "Task" has incompatible type "str"'),
    "wrong type, bound async": (
        'bound_async.delay("x")',
        'Argument 1 to "delay" of "Task" has incompatible type "str"',
    ),
    "wrong type, shared": ('shared.delay("x")', 'Argument 1 to "delay" of "Task" has incompatible type "str"'),
    "wrong type, shared with options": (
        'shared_with_options.delay("x")',
        'has incompatible type "str"; expected "int"',
    ),
    "no signature": ("rsq.chain(add, add.s(1))", "No overload variant"),
    "wrong keyword": ("add.delay(1, c=2)", 'Unexpected keyword argument "c" for "delay" of "Task"'),
    "missing argument": ("add.delay()", 'Missing positional argument "a" in call to "delay" of "Task"'),
    "wrong type, awaited call": (
        "async def main() -> bytes:\n    return await fetch(1)",
        'Argument 1 to "__call__" of "AsyncTask" has incompatible type "int"; expected "str"',
    ),
    "await of a plain task": (
        "async def main() -> int:\n    return await add(1)",
        'Incompatible types in "await" (actual type "int"',
    ),
    "call without await": ('b: bytes = fetch("x")', 'expression has type "Coroutine[Any, Any, bytes]"'),
    "forgotten await": ('fetch("x")', 'Value of type "Coroutine[Any, Any, bytes]" must be used'),
    "missing argument, bound": ("bound.delay()", 'Missing positional argument "number" in call to "delay" of "Task"'),
    "wrong type, generator": ('counts.delay("x")', 'Argument 1 to "delay" of "_Sends" has incompatible type "str"'),
    "result of another type, generator": ("n: int = counts.delay(1).get()", 'variable has type "int"'),
    "too many arguments": ("add.delay(1, 2, 3)", 'Too many arguments for "delay" of "Task"'),
    "keyword-only by position": ("send.delay('me', True)", 'Too many positional arguments for "delay" of "Task"'),
    "self by hand": ("bound.delay(bound, 1)", 'Argument 1 to "delay" of "Task" has incompatible type'),
    "result of another type": ("s: str = add.delay(1).get()", 'expression has type "int", variable has type "str"'),
    "a name that is not there": ("app.conf", '"App" has no attribute "conf"'),
    "a name that is not there, of a task": ("add.subtask(1)", 'has no attribute "subtask"'),
    "an option of get": ("add.delay(1).get(interval=1)", 'Argument "interval" to "get" of "AsyncResult"'),
    "testing": ("app.testing.eager(propagat=True)", 'Unexpected keyword argument "propagat" for "eager" of "Testing"'),
}

REVEALED = {
    "plain": ("add.delay(1).get()", "int"),
    "apply_async": ("add.apply_async((1,))", "AsyncResult[int]"),
    "map_async": ("add.map_async([(1,)])", "list[AsyncResult[int]]"),
    "options": ("send.delay('me')", "AsyncResult[None]"),
    "async def": ("fetch.delay('x').get()", "bytes"),
    "async def with options": ("fetch_later.delay('x').get()", "list[str]"),
    "bound": ("bound.delay(1).get()", "str"),
    "async def of Any": ("of_anything", "AsyncTask[[a: Any, b: dict[str, Any]], int]"),
    "bound async, of Any": ("bound_to_anything", "AsyncTask[[a: Any], int]"),
    "bound async": ("bound_async.delay(1).get()", "int"),
    "bound async, task": ("bound_async", "AsyncTask[[number: int], int]"),
    "async def, task": ("fetch", "AsyncTask[[url: str], bytes]"),
    "async def with options, task": ("fetch_later", "AsyncTask[[url: str], list[str]]"),
    "shared async": ("shared_async", "AsyncTask[[a: int], str]"),
    "shared async, result": ("shared_async.delay(1).get()", "str"),
    "shared": ("shared.delay(1).get()", "str"),
    "shared with options": ("shared_with_options.delay(1).get()", "str"),
    "shared bound": ("shared_bound.delay(1).get()", "str"),
    "signature": ("add.s(1)", "Signature[int]"),
    "signature, result": ("fetch.si('x').delay().get()", "bytes"),
    "chain": ("rsq.chain(add.s(1), fetch.s())", "Chain[bytes]"),
    "pipe": ("add.s(1) | fetch.s() | send.s()", "Signature[None]"),
    "group": ("rsq.group(add.s(1), add.s(2)).delay()", "GroupResult[int]"),
    "chord": ("rsq.chord([add.s(1)], fetch.s()).delay().get()", "bytes"),
    "chain that ends with a group": ("rsq.chain(add.s(1), rsq.group(fetch.s())).delay().get()", "list[bytes]"),
    "map": ("add.starmap([(1, 2)]).delay().get()", "list[int]"),
    "map in a chain": ("rsq.chain(add.s(1), fetch.map(['x']))", "Chain[list[bytes]]"),
    "chunks": ("add.chunks([(1, 2)], 10)()", "GroupResult[list[int]]"),
    "chunks as a group": ("add.chunks([(1, 2)], 10).group().delay().get()", "list[list[int]]"),
    "stamped": ("add.s(1).stamp(by='me')", "Signature[int]"),
    "restored": ("rsq.GroupResult.restore('x')", "GroupResult[Any] | None"),
    "generator": ("counts.delay(1).get()", "str"),
    "generator, what it yields": ("counts.delay(1).stream()", "OutputStream[int]"),
    "generator, by id": ("counts.AsyncResult('x').stream()", "OutputStream[int]"),
    "generator, called here": ("counts(1)", "typing.Generator[int, None, str]"),
    "generator, signature": ("counts.s(1).delay().get()", "str"),
    "bound generator": ("bound_counts.delay(1).get()", "str"),
    "bound generator, what it yields": ("bound_counts.delay(1).stream()", "OutputStream[int]"),
    "generator of anything": ("of_any.delay([]).get()", "str"),
    "what a stream gives": ("next(counts.apply_async((1,)).stream())", "Item[int] | NewRun | Gap"),
    "async iterator": ("acounts.delay(1).stream()", "OutputStream[int]"),
    "async generator": ("agenerates.delay(1).stream()", "OutputStream[bytes]"),
    "by id": ("add.AsyncResult('x').get()", "int"),
    "task": ("bound", "Task[[number: int], str]"),
}


def _indented_away(code: str) -> str:
    lines = code.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[margin:] for line in lines)


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Mapping[str, list[str]]:
    """What mypy says about each case, in one run for all: most of its time goes into what rsq imports."""
    cases = {
        **{f"accepted {name}": code for name, code in ACCEPTED.items()},
        **{f"refused {name}": code for name, (code, _) in REFUSED.items()},
        **{f"revealed {name}": f"reveal_type({code})" for name, (code, _) in REVEALED.items()},
    }
    folder = tmp_path_factory.mktemp("typing")
    names = {}
    for number, (name, code) in enumerate(cases.items()):
        names[f"case_{number}"] = name
        (folder / f"case_{number}.py").write_text(f"{PRELUDE}\n{_indented_away(code)}\n")
    assert request.config.cache is not None
    cache = request.config.cache.mkdir("mypy")
    # rsq itself is checked elsewhere; here its signatures are all that counts.
    options = ["--strict", "--config-file=", "--follow-imports=silent", "--no-error-summary", f"--cache-dir={cache}"]
    output, errors, _ = api.run([*options, str(folder)])
    assert errors == ""
    said = defaultdict(list)
    for line in output.splitlines():
        found = re.fullmatch(r".*(case_\d+)\.py:\d+: (?:error|note): (.*)", line)
        assert found is not None, output
        said[names[found[1]]].append(found[2])
    return said


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str, messages: Mapping[str, list[str]]) -> None:
    assert messages.get(f"accepted {name}", []) == []


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, messages: Mapping[str, list[str]]) -> None:
    said = messages.get(f"refused {name}", [])
    assert any(REFUSED[name][1] in each for each in said), said


@pytest.mark.parametrize("name", REVEALED)
def test_revealed(name: str, messages: Mapping[str, list[str]]) -> None:
    said = [re.sub(r"\b(?:rsq|builtins)(?:\.\w+)*\.", "", each) for each in messages.get(f"revealed {name}", [])]
    assert said == [f'Revealed type is "{REVEALED[name][1]}"']
