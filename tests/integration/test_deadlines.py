"""What a caller waits for, by thread and by coroutine: never longer than he said, and never in vain."""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rsq import App, BrokerRefused, BrokerUnavailable, ResultTimeout
from rsq.broker.connection import Endpoint, Link
from rsq.broker.producer import CHUNK, CHUNK_BYTES, chunks
from rsq.calls.message import Message
from rsq.calls.placement import PLAIN
from tests.clusters import channels
from tests.conftest import MakeServer
from tests.helpers import wait_until
from tests.integration import tasks
from tests.integration.conftest import Journal, StartWorker, settled, totals
from tests.proxy import Proxy
from tests.servers import Server

MUCH_S = 20
"""No deadline here is longer than a few seconds; a busy machine may be late by this much."""


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server) as running:
        yield running


@pytest.fixture
def producer(app: App, proxy: Proxy) -> App:
    """The app, sending through the proxy, with a connection that stands already."""
    app.configure(url=proxy.url, broker_timeout_s=5.0)
    app.client.queue_names()
    tasks.add.apply_async((0, 0), queue="warm-up", task_id="warm-up")
    return app


@pytest.fixture(autouse=True)
def settings_from_before(app: App) -> Iterator[None]:
    with app.configured():
        yield


@pytest.fixture
def standing(app: App, own_server: MakeServer) -> Iterator[Server]:
    """A server that a test may freeze and kill; the app sends to it."""
    server = own_server(appendonly=True)
    with app.configured(url=server.url, broker_timeout_s=2.0):
        yield server
        server.thaw() if server.running else server.start()


def held(app: App) -> int:
    now = totals(app)
    return now.ready + now.running + now.delayed


def standing_entries(standing: Server, app: App) -> list[Any]:
    with standing.client() as client:
        entries: list[Any] = client.xrange(app.client.queue(None).keys.stream())
        return entries


async def send_once() -> None:
    try:
        await tasks.add.adelay(1, 1)
    finally:
        await tasks.app.aclose()


SENDS: list[Callable[[], Any]] = [lambda: tasks.add.delay(1, 1), lambda: asyncio.run(send_once())]

# -- repeats


@pytest.mark.parametrize("fault", ["cut_request", "cut_reply", "truncate_reply"])
def test_a_bulk_that_was_cut_is_looked_for_once(producer: App, proxy: Proxy, redis: Any, fault: str) -> None:
    """Not once for each of its calls, and not through all that came before."""
    queue = producer.client.queue(None)
    with redis.pipeline(transaction=False) as pipe:
        for number in range(20_000):
            pipe.xadd(queue.keys.stream(), {"id": f"x{number}", "task": "t", "body": b"", "meta": b""})
        pipe.execute()
    sent_at = redis.time()[0]
    wait_until(lambda: redis.time()[0] > sent_at + 1, what="all of them to be older than any doubt about the clock")
    tasks.add.delay(0, 0)
    redis.config_resetstat()
    proxy.plan(fault, at=b"XADD")
    handles = tasks.add.map_async([(number, 1) for number in range(1000)])
    assert len({handle.id for handle in handles}) == 1000
    assert held(producer) == 20_000 + 1 + 1000
    stats = redis.info("commandstats")
    assert stats["cmdstat_xrevrange"]["calls"] < 200
    assert stats["cmdstat_xadd"]["calls"] <= 2000
    redis.flushall()


@pytest.mark.parametrize("how", ["delay", "adelay", "map_async"])
def test_where_nobody_can_tell_nothing_is_sent_again(
    producer: App, proxy: Proxy, redis: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply is lost, and before the repeat so much comes from others that one look does not reach back to it."""
    queue = producer.client.queue(None)
    tasks.add.delay(0, 0)
    proxy.plan("cut_request", at=b"XADD")
    crowd = queue.arrived_call

    def crowded(*arguments: Any) -> Any:
        with redis.pipeline(transaction=False) as pipe:
            for number in range(6000):
                pipe.xadd(queue.keys.stream(), {"id": f"x{number}", "task": "t", "body": b"", "meta": b""})
            pipe.execute()
        return crowd(*arguments)

    monkeypatch.setattr(queue, "arrived_call", crowded)
    with pytest.raises(BrokerUnavailable, match="too much has come since") as caught:
        if how == "delay":
            tasks.add.delay(1, 1)
        elif how == "adelay":
            asyncio.run(tasks.add.adelay(1, 1))
        else:
            tasks.add.map_async([(number, 1) for number in range(10)])
    assert len(caught.value.task_ids) == (10 if how == "map_async" else 1)
    before = held(producer)
    with pytest.raises(BrokerUnavailable, match="too much has come since"):
        tasks.add.apply_async((1, 1), task_id=caught.value.task_ids[0])
    assert held(producer) == before + 6000
    redis.flushall()


def test_a_repeat_that_comes_late_does_not_run_twice(
    app: App, server: Server, start_worker: StartWorker, journal: Journal
) -> None:
    """Its producer is patient: for so long its workers remember what left no trace."""
    start_worker(concurrency=1)
    with Proxy(server) as proxy:
        app.configure(url=proxy.url, broker_timeout_s=1.0)
        tasks.quiet.apply_async(("warm-up",))
        proxy.plan(*["cut_reply"] * 1000)
        with pytest.raises(BrokerUnavailable) as caught:
            tasks.quiet.delay("once")
        proxy._faults.clear()
        wait_until(lambda: journal.count("ran once") == 1, 20, "the call to run")
        wait_until(lambda: settled(app), 20, "it to be settled")
        task_id = caught.value.task_id
        assert task_id is not None
        # As if it came a minute later: nobody can tell, which is an error and no second run.
        tries = app.client._sending._unsure._first_tries
        tries[task_id] -= 60
        with app.client.link() as link:
            link.call("DEL", f"{app.client.queue(None).keys.prefix}:ended")
        with pytest.raises(BrokerUnavailable, match="too much time has passed"):
            tasks.quiet.apply_async(("once",), task_id=task_id)
        assert settled(app)
        assert journal.count("ran once") == 1


# -- bulks


def test_a_bulk_goes_in_pieces_of_bounded_size() -> None:
    def sends(*sizes: int) -> list[Any]:
        return [(Message(str(number), "t", bytes(size), "q", 0, {}), PLAIN) for number, size in enumerate(sizes)]

    def pieces(*sizes: int) -> list[int]:
        return [len(piece) for piece in chunks(sends(*sizes))]

    assert pieces() == []
    assert pieces(*[10] * (2 * CHUNK + 1)) == [CHUNK, CHUNK, 1]
    assert pieces(*[CHUNK_BYTES // 8] * 20) == [8, 8, 4]
    assert pieces(2 * CHUNK_BYTES, 1, CHUNK_BYTES, CHUNK_BYTES) == [1, 1, 1, 1]


def test_a_bulk_on_a_slow_line_takes_its_time(producer: App, proxy: Proxy) -> None:
    """All of it takes longer than a deadline; no piece does."""
    producer.configure(broker_timeout_s=4.0)
    tasks.measure.delay("")
    proxy.bytes_per_s = 5_000_000
    handles = tasks.measure.map_async([("x" * 1_000_000,) for _ in range(30)])
    proxy.bytes_per_s = 0
    assert len({handle.id for handle in handles}) == 30
    assert held(producer) == 31


def test_a_bulk_that_gave_up_names_all_that_are_unsure(standing: Server, app: App) -> None:
    tasks.add.delay(0, 0)
    standing.freeze()
    with pytest.raises(BrokerUnavailable) as caught:
        tasks.add.map_async([(number, 1) for number in range(2500)])
    standing.thaw()
    assert len(set(caught.value.task_ids)) == 2500
    assert caught.value.task_id == caught.value.task_ids[0]
    for task_id in caught.value.task_ids[:3]:
        assert tasks.add.apply_async((0, 1), task_id=task_id).id == task_id
    # Those that lay in the buffer of the server that hung did not arrive behind their repeats.
    ids = [fields[b"id"] for _, fields in standing_entries(standing, app)]
    assert len(ids) == len(set(ids))


# -- deadlines


async def test_a_server_that_hangs_costs_each_coroutine_one_deadline(standing: Server, app: App) -> None:
    app.configure(broker_timeout_s=1.0)
    await tasks.add.adelay(0, 0)
    standing.freeze()
    took_s: list[float] = []

    async def send() -> None:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await tasks.add.adelay(1, 1)
        took_s.append(time.monotonic() - began)

    await asyncio.gather(*(send() for _ in range(40)))
    standing.thaw()
    assert len(took_s) == 40
    assert max(took_s) < MUCH_S  # one after the other it was 40
    await app.aclose()


def test_the_deadline_is_of_the_whole_send(server: Server, app: App) -> None:
    """A line on which each answer takes a second: to connect alone takes several."""
    with Proxy(server) as proxy, app.configured(url=proxy.url, broker_timeout_s=1.5):
        proxy.delay_s = 1.0
        for send in SENDS:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                send()
            assert time.monotonic() - began < 5.5  # it was a second for each of eight answers
        proxy.delay_s = 0


async def test_an_embedded_server_that_hangs_does_not_stop_the_loop(app: App, tmp_path: Path) -> None:
    from rsq.broker.embedded import EmbeddedServer

    embedded = EmbeddedServer(tmp_path / "e")
    embedded.ensure()
    pid = embedded.status().pid
    assert pid is not None
    try:
        os.kill(pid, 19)
        with app.configured(url=f"embedded://{tmp_path}/e", broker_timeout_s=1.0):
            turns = 0

            async def turn() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0.01)
                    turns += 1

            turning = asyncio.create_task(turn())
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                await tasks.add.adelay(1, 1)
            assert time.monotonic() - began < 8  # it was 10
            turning.cancel()
            assert turns > 5  # it was 0
            await app.aclose()
    finally:
        os.kill(pid, 18)
        embedded.stop()


# -- waits


def test_with_no_time_a_result_is_looked_for(app: App, start_worker: StartWorker) -> None:
    start_worker(concurrency=1)
    first, second = tasks.add.delay(1, 1), tasks.add.delay(2, 2)
    assert first.get(timeout=20) == 2
    wait_until(second.ready, 20, "the second to end")
    assert [app.AsyncResult(second.id, queue=second.queue).get(timeout=time_s) for time_s in (0, -1, 0.0001)] == [4] * 3

    async def wait() -> list[Any]:
        fresh = [app.AsyncResult(second.id, queue=second.queue) for _ in range(3)]
        got = [await fresh[0].aget(timeout=0), await fresh[1].aget(timeout=-1), await fresh[2].aget(timeout=0.0001)]
        with pytest.raises(ResultTimeout):
            await app.AsyncResult("nobody", queue="default").aget(timeout=0)
        await app.aclose()
        return got

    assert asyncio.run(wait()) == [4] * 3
    with pytest.raises(ResultTimeout):
        app.AsyncResult("nobody", queue="default").get(timeout=0)


@pytest.mark.parametrize("how", ["threads", "coroutines"])
def test_after_a_restart_all_who_wait_get_their_results(
    standing: Server, app: App, start_worker: StartWorker, tmp_path: Path, how: str
) -> None:
    """The server is away for longer than a try to connect takes, and others send and wait all the time."""
    start_worker(concurrency=6, worker_url=standing.url)
    gates = [str(tmp_path / f"gate-{number}") for number in range(4)]
    handles = [tasks.gate.delay(gate, gate) for gate in gates]
    got: list[Any] = []
    stop = threading.Event()

    def wait() -> None:
        async def all_of_them() -> None:
            got.extend(await asyncio.gather(*(handle.aget(timeout=120) for handle in handles)))
            await app.client.leave_loop()

        asyncio.run(all_of_them())

    def traffic() -> None:
        while not stop.is_set():
            try:
                tasks.add.delay(1, 1).get(timeout=5)
            except (BrokerUnavailable, ResultTimeout):
                stop.wait(0.1)

    waits: list[Callable[[], None]] = [wait]
    if how == "threads":
        waits = [lambda handle=handle: got.append(handle.get(timeout=120)) for handle in handles]  # type: ignore[misc]
    threads = [threading.Thread(target=each, daemon=True) for each in [*waits, traffic]]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: len(channels(standing, "*:result:*")) >= 4, 30, "all to wait")
    except BaseException:
        stop.set()  # who sends on would send into the tests after this one
        raise
    standing.kill()
    time.sleep(1)  # for several tries
    standing.start()
    for gate in gates:
        Path(gate).touch()
    for thread in threads[:-1]:
        thread.join(60)
    stop.set()
    threads[-1].join(30)
    assert sorted(got) == gates


async def test_a_coroutine_outlasts_an_outage_until_its_timeout(
    standing: Server, app: App, start_worker: StartWorker, tmp_path: Path
) -> None:
    app.configure(broker_timeout_s=0.5)
    start_worker(concurrency=1, worker_url=standing.url)
    handle = await tasks.gate.adelay(str(tmp_path / "open"))
    waiting = asyncio.create_task(handle.aget(timeout=120))
    endless = asyncio.create_task(app.AsyncResult(handle.id, queue=handle.queue).aget())
    await asyncio.to_thread(wait_until, lambda: channels(standing, "*:result:*"), 30, "it to wait")
    standing.kill()
    # Without a timeout it is `broker_timeout_s` after which nobody waits for a server any more.
    with pytest.raises(BrokerUnavailable):
        await asyncio.wait_for(endless, 60)
    await asyncio.sleep(0.5)
    assert not waiting.done()
    (tmp_path / "open").touch()
    await asyncio.to_thread(standing.start)
    assert await asyncio.wait_for(waiting, 60) == "gate"
    await app.aclose()


def test_without_a_timeout_a_thread_gives_up_in_time(standing: Server, app: App) -> None:
    app.configure(broker_timeout_s=0.5)
    handle = tasks.add.delay(1, 1)
    standing.kill()
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable) as caught:
            handle.get()
        assert 0.4 < time.monotonic() - began < MUCH_S
        # It is told once.
        assert str(caught.value).count("cannot be reached") == 1


async def test_waits_that_are_cancelled_harm_nobody(app: App, proxy: Proxy, start_worker: StartWorker) -> None:
    start_worker(concurrency=2)
    app.configure(url=proxy.url)
    proxy.delay_s = 0.002
    got = cancelled = 0

    async def one(number: int) -> None:
        nonlocal got, cancelled
        try:
            handle = await asyncio.wait_for(tasks.add.adelay(number, 1), 20)
            if number % 3:
                assert await asyncio.wait_for(handle.aget(timeout=60), 60) == number + 1
                got += 1
            else:
                await asyncio.wait_for(handle.aget(timeout=60), 0.001 * (number % 20))
        except asyncio.TimeoutError:
            cancelled += 1

    for first in range(0, 300, 25):
        await asyncio.gather(*(one(number) for number in range(first, first + 25)))
    proxy.delay_s = 0
    assert got == 200
    assert cancelled
    await app.aclose()
    assert len(asyncio.all_tasks()) == 1


# -- connections


def test_closed_event_loops_leave_nothing_behind(app: App, start_worker: StartWorker) -> None:
    start_worker(concurrency=1)

    async def one(number: int) -> int:
        handle = await tasks.add.adelay(number, 1)
        value: int = await handle.aget(timeout=60)
        return value

    files = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        assert asyncio.run(one(number)) == number + 1
    gc.collect()
    # Those of the last loop stay until the next one comes. And what is closed here has ended for the server.
    assert len(os.listdir("/proc/self/fd")) <= files + 8
    app.close()


def test_links_that_many_threads_needed_once_are_closed(app: App, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rsq.broker.pool.IDLE_S", 0.0)
    together = threading.Barrier(30)

    def send() -> None:
        link = app.client.pool.take()
        link.call("PING")
        together.wait(30)
        app.client.pool.give_back(link)

    threads = [threading.Thread(target=send) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for _ in range(60):
        tasks.add.delay(1, 1)
    assert len(app.client.pool._free) <= 2


def test_a_fork_amid_a_report_of_progress(app: App) -> None:
    reporter = app.client.reporter
    with reporter._writing, reporter._lock:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                app.client.report_progress("a", "default", b"x")
                app.close()
                code = 0
            finally:
                os._exit(code)
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, 30, "the child to end")


def test_a_queue_that_cannot_be_made_known_takes_calls(
    own_server: MakeServer, app: App, caplog: pytest.LogCaptureFixture
) -> None:
    server = own_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "shop", "on", ">word", "+@all", "~{rsq:*", "&*")
    with app.configured(url=f"unix://shop:word@{server.socket}?db=0"):
        for number in range(3):
            assert not tasks.add.delay(number, 1).duplicate
        assert len(tasks.add.map_async([(1, 1), (2, 2)])) == 2
        asyncio.run(send_once())
        assert app.client.ask(("XLEN", app.client.queue(None).keys.stream())) == [6]
    assert len([each for each in caplog.messages if "cannot be made known" in each]) == 1


# -- TLS


def certificates(directory: Path, *names: str) -> None:
    """Write one for each of these names, all of them of the authority in `ca.pem`."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=an authority")
    for name in names:
        (directory / "names").write_text(f"subjectAltName=DNS:{name}")
        openssl("req", *key, "-keyout", f"{name}.key", "-out", "request", "-subj", f"/CN={name}")
        sign = ("-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2", "-extfile", "names")
        openssl("x509", "-req", "-in", "request", *sign, "-out", f"{name}.pem")


@pytest.fixture
def tls(own_server: MakeServer, tmp_path: Path) -> tuple[Server, int]:
    """A server whose certificate, of the authority in `ca.pem`, is for another.example; and its TLS port."""
    from tests.helpers import free_port

    certificates(tmp_path, "another.example", "localhost")
    port = free_port()
    config = {"tls-port": str(port), "tls-ca-cert-file": str(tmp_path / "ca.pem"), "tls-auth-clients": "no"}
    files = {"tls-cert-file": tmp_path / "another.example.pem", "tls-key-file": tmp_path / "another.example.key"}
    try:
        server = own_server(config={**config, **{name: str(path) for name, path in files.items()}})
    except RuntimeError as error:
        pytest.skip(f"this server was built without TLS: {error}")
    return server, port


def test_tls_checks_the_name_and_works(tls: tuple[Server, int], app: App, tmp_path: Path) -> None:
    server, port = tls
    for url in (f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem", f"rediss://localhost:{port}/0"):
        with app.configured(url=url, broker_timeout_s=5.0):
            for send in SENDS:
                with pytest.raises(BrokerRefused, match="has a certificate that cannot be trusted"):
                    send()
    with server.client() as client:
        client.config_set("tls-cert-file", f"{tmp_path}/localhost.pem", "tls-key-file", f"{tmp_path}/localhost.key")
    with app.configured(url=f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/ca.pem"):
        link = Link(Endpoint(app.settings.url), 5)
        assert link.call("ECHO", b"x" * 1_000_000) == b"x" * 1_000_000
        assert isinstance(link._channel.socket, ssl.SSLSocket)  # type: ignore[union-attr]
        link.close()
        handles = tasks.add.map_async([(number, 1) for number in range(3)])
        asyncio.run(send_once())
        assert app.client.ask(("XLEN", app.client.queue(None).keys.stream())) == [4]
        with pytest.raises(ResultTimeout):
            handles[0].get(timeout=0.2)
