"""Those who write a stream of events, those who read it beside rsq, and those who do to it what others may do."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from typing import Any

import redis

from tests.chaos import tasks
from tests.chaos.senders.sender import TRIES, UNSURE, Sender
from tests.clusters import AnyServer

AUDIT = "audit"
"""The group of a consumer that was written by hand; rsq may trim nothing that it has not acknowledged."""

READ = 20
LATE, FORGETFUL = 0.1, 0.3
"""Share of the events whose first attempt fails, and of the reads of the auditor whose acknowledgement gets lost."""


class Events:
    """For several threads; only one of them may audit."""

    def __init__(self, sender: Sender, server: AnyServer, takes_part: bool) -> None:
        self._sender = sender
        self._server = server
        self._accepted: set[str] = set()
        self._audited: set[str] = set()
        if takes_part:
            with server.client() as client:
                client.xgroup_create(tasks.EVENTS, AUDIT, "0", mkstream=True)

    def publish(self, rng: random.Random) -> None:
        """One event, once, under an id: a call for each of the groups that rsq reads it for."""
        one, two = self._sender.numbers(2)
        journal, key = self._sender.journal, rng.choice("abcdef")
        journal.write("sent", kind="on_one", serials=[one])
        journal.write("sent", kind="on_two", serials=[two])
        event = {"one": one, "two": two, "key": key, "late": int(rng.random() < LATE)}
        for _ in range(TRIES):
            try:
                published = tasks.app.publish(tasks.EVENTS, event, id=f"e{one}", dedupe_ttl=600)
                break
            except UNSURE:
                continue
        else:
            journal.write("unsure", serials=[one, two])
            return
        self._accepted.add(published.id)
        for serial, task in ((one, tasks.on_one), (two, tasks.on_two)):
            assert task.source is not None
            queue = task.options.queue
            journal.write("accepted", serial=serial, id=task.source.task_id(published.id), queue=queue, duplicate=False)
        journal.write("ordered", key=key, serial=two, entry=published.id)

    def audit(self, rng: random.Random) -> None:
        """Read what is pending, then what is new, and acknowledge it, unless that gets lost."""
        with suppress(redis.RedisError, LookupError), self._server.client(socket_timeout=5.0) as client:
            self._audit(client, forgets=rng.random() < FORGETFUL)

    def _audit(self, client: Any, forgets: bool) -> bool:
        for start in ("0", ">"):
            for _, page in client.xreadgroup(AUDIT, "auditor", {tasks.EVENTS: start}, count=READ) or []:
                self._audited |= {entry_id.decode() for entry_id, fields in page if fields}
                if page and not forgets:
                    client.xack(tasks.EVENTS, AUDIT, *(entry_id for entry_id, _ in page))
                if page:
                    return True
        return False

    def meddle(self, rng: random.Random) -> None:
        """What others do to rsq's own group; it is to bear it all."""
        group = rng.choice(("one", "two"))
        with suppress(redis.RedisError, LookupError), self._server.client(socket_timeout=5.0) as client:
            act = rng.choice(("destroy", "back", "on", "read", "leave"))
            if act == "destroy":
                client.xgroup_destroy(tasks.EVENTS, group)
            elif act in ("back", "on"):
                client.xgroup_setid(tasks.EVENTS, group, "0" if act == "back" else "$")
            elif act == "read":
                client.xreadgroup(group, "stranger", {tasks.EVENTS: ">"}, count=READ, noack=rng.random() < 0.5)
            else:
                client.xgroup_delconsumer(tasks.EVENTS, group, "stranger")

    def finish(self, patience_s: float) -> None:
        """The auditor reads to the end: all that was published must have come to him."""
        deadline = time.monotonic() + patience_s
        more = True
        while more and time.monotonic() < deadline:
            try:
                with self._server.client(socket_timeout=5.0) as client:
                    while more := self._audit(client, forgets=False):
                        pass
            except (redis.RedisError, LookupError):
                time.sleep(0.1)
        if missing := sorted(self._accepted - self._audited):
            text = f"{len(missing)} events of {len(self._accepted)} were gone before group {AUDIT} had read them"
            self._sender.journal.write("problem", text=f"{text}: {missing[:5]}")
