"""Those who send: several threads, each with a mix of all ways to send a call."""

from __future__ import annotations

import itertools
import random
import threading
import time
from typing import Any

from rsq import AsyncResult, BrokerUnavailable, ResultTimeout, Task, TaskRevoked
from tests.chaos import tasks
from tests.chaos.journal import Journal

PAUSE_S = 0.04
"""Mean wait of one thread between two sends."""

TRIES = 5
"""A producer that gave up sends the call again under its id, so often in all."""

WAIT_S = 15.0
"""How long a caller waits for a result."""

SHORT_S = (0.0, 0.01, 0.05)
"""How long most bodies run; some that do nothing, so that many are fetched ahead."""

SLOW_S = ((0.2, 0.8), (0.2, 0.8), (0.2, 0.8), (1.0, 5.0))
"""Ranges of the long ones; some outlast a lease."""

LONG_S = 8.0
"""How long a body runs that is to be interrupted: so long that it shows if it was not."""

AnyTask = Task[..., Any]


class Producers:
    """Threads that send until they are told to stop, and one that waits for what it sent."""

    def __init__(self, threads: int, journal: Journal, seed: int) -> None:
        self._journal = journal
        self._serials = itertools.count(1)
        self._stop = threading.Event()
        self._failed: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(target, random.Random(f"{seed}-{number}")), daemon=True)
            for number, target in enumerate([self._send_something] * threads + [self._send_and_wait])
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each end what it is at. Raises what went wrong in them: no error but the announced ones may come up."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        for error in self._failed:
            raise error

    def _run(self, act: Any, rng: random.Random) -> None:
        try:
            while not self._stop.wait(rng.expovariate(1 / PAUSE_S)):
                act(rng)
        except BaseException as error:
            self._failed.append(error)

    def _send_something(self, rng: random.Random) -> None:
        (way,) = rng.choices(list(self._WAYS), weights=list(self._WAYS.values()))
        way(self, rng)

    # -- ways to send

    def _plain(self, rng: random.Random) -> None:
        self._send(tasks.plain, rng.choice(SHORT_S))

    def _later(self, rng: random.Random) -> None:
        self._send(tasks.plain, countdown=rng.uniform(0.05, 1.5))

    def _urgent(self, rng: random.Random) -> None:
        self._send(tasks.plain, priority=rng.randint(1, 9))

    def _elsewhere(self, rng: random.Random) -> None:
        self._send(tasks.bulk)

    def _quiet(self, rng: random.Random) -> None:
        self._send(tasks.quiet)

    def _recovers(self, rng: random.Random) -> None:
        self._send(tasks.recovers)

    def _fails(self, rng: random.Random) -> None:
        self._send(tasks.fails)

    def _slow(self, rng: random.Random) -> None:
        self._send(tasks.plain, rng.uniform(*rng.choice(SLOW_S)))

    def _once(self, rng: random.Random) -> None:
        self._send(tasks.once, rng.choice((*SHORT_S, 0.3)))

    def _once_quiet(self, rng: random.Random) -> None:
        self._send(tasks.once_quiet)

    def _limited(self, rng: random.Random) -> None:
        self._send(tasks.limited, rng.choice(SHORT_S))

    def _twice_by_key(self, rng: random.Random) -> None:
        serial = next(self._serials)
        for _ in range(2):
            self._send(tasks.plain, serial=serial, dedupe_key=f"key-{serial}")

    def _twice_by_id(self, rng: random.Random) -> None:
        serial = next(self._serials)
        for _ in range(2):
            self._send(tasks.plain, serial=serial, task_id=f"own-{serial}")

    def _many(self, rng: random.Random) -> None:
        serials = list(itertools.islice(self._serials, rng.randint(20, 60)))
        self._journal.write("sent", kind="plain", serials=serials)
        try:
            handles = tasks.plain.map_async([(serial, rng.choice(SHORT_S)) for serial in serials])
        except BrokerUnavailable:
            # Which of them arrived is not known; each may have, once.
            self._journal.write("unsure", serials=serials)
            return
        for serial, handle in zip(serials, handles, strict=True):
            self._accepted(serial, handle)

    # -- and to take it back

    def _later_and_revoked(self, rng: random.Random) -> None:
        """Delayed at first; revoked before it is due, or at that moment."""
        due_s = rng.uniform(0.05, 1.0)
        self._send_and_revoke(rng, rng.choice((0.0, rng.uniform(0.0, due_s), due_s)), countdown=due_s)

    def _waiting_and_revoked(self, rng: random.Random) -> None:
        self._send_and_revoke(rng, rng.choice((0.0, 0.005, 0.05)), priority=rng.choice((0, 0, 5)))

    def _running_and_revoked(self, rng: random.Random) -> None:
        self._send_and_revoke(rng, rng.uniform(0.1, 0.8), seconds=LONG_S, terminate=True)

    def _retried_and_revoked(self, rng: random.Random) -> None:
        self._send_and_revoke(rng, rng.uniform(0.0, 0.4), fails=True)

    def _send_and_revoke(
        self,
        rng: random.Random,
        pause_s: float,
        seconds: float = 0.0,
        fails: bool = False,
        terminate: bool | None = None,
        **options: Any,
    ) -> None:
        handle = self._send(tasks.revocable, seconds, fails, **options)
        if handle is None:
            return
        time.sleep(pause_s)
        self._revoke(handle, rng.random() < 0.5 if terminate is None else terminate)

    def _revoke(self, handle: AsyncResult[Any], terminate: bool) -> None:
        began, answer = time.monotonic(), None
        for _ in range(TRIES):
            try:
                answer = tasks.app.revoke(handle.id, terminate=terminate, queue=handle.queue)[handle.id]
                break
            except BrokerUnavailable:
                pass
        self._journal.write(
            "revoked", at=began, until=time.monotonic(), id=handle.id, terminate=terminate, answer=answer
        )

    _WAYS = {
        _plain: 40,
        _later: 10,
        _urgent: 10,
        _elsewhere: 8,
        _quiet: 10,
        _recovers: 5,
        _fails: 3,
        _slow: 2,
        _once: 6,
        _once_quiet: 3,
        _twice_by_key: 5,
        _twice_by_id: 5,
        _many: 2,
        _limited: 4,
        _later_and_revoked: 4,
        _waiting_and_revoked: 3,
        _running_and_revoked: 1,
        _retried_and_revoked: 3,
    }

    def _send_and_wait(self, rng: random.Random) -> None:
        revokes = rng.random() < 0.3
        handle = self._send(tasks.revocable, 0.0, False, countdown=2.0) if revokes else self._send(tasks.plain)
        if handle is None:
            return
        began = time.monotonic()
        if revokes:
            self._revoke(handle, False)
        try:
            handle.get(timeout=WAIT_S)
            heard = True
        except TaskRevoked:
            heard = True
        except (ResultTimeout, BrokerUnavailable):
            heard = False
        self._journal.write("waited", at=began, until=time.monotonic(), id=handle.id, heard=heard)

    def _send(
        self, task: AnyTask, *arguments: Any, serial: int | None = None, **options: Any
    ) -> AsyncResult[Any] | None:
        """Send one call, again and again under its id where the server is away. None: nobody knows."""
        serial = next(self._serials) if serial is None else serial
        self._journal.write("sent", kind=task.__name__, serials=[serial])
        for _ in range(TRIES):
            try:
                handle = task.apply_async((serial, *arguments), **options)
            except BrokerUnavailable as error:
                options["task_id"] = error.task_id
            else:
                self._accepted(serial, handle)
                return handle
        self._journal.write("unsure", serials=[serial])
        return None

    def _accepted(self, serial: int, handle: AsyncResult[Any]) -> None:
        self._journal.write(
            "accepted", serial=serial, id=handle.id, queue=handle.queue or "default", duplicate=handle.duplicate
        )
