"""The log of a chaos run, outside Redis: who sent, started and finished what and when, and what was done to them.

One JSON object a line, each written by one write to a file opened with O_APPEND, by every process of the run:

    begun      the workers are at work, with leases of `lease_s`
    sent       the kind of call `kind`, the numbers `serials`: about to be handed to the server
    accepted   `serial` stands as `id` on `queue`; `duplicate` where an earlier call with its key or id won
    unsure     the producer gave up on these `serials`: they may or may not have arrived
    tried      a try to send these `serials` took from `at` to `until`, which is long, and came to this (`how`)
    started    a body began: `id`, `serial`, `kind`, `attempt`, `entry`, `consumer`, `worker` (pid of the supervisor),
               `deliveries` and `crashes` as the server had counted them, and `leases`, the consumers that were
               registered there at that moment (None: it did not answer); in a flow also `given`, the serial numbers of
               those whose values it got, and of an errback `about`, the id that it was told
    finished   the body that this `pid` had started came to its end, `how`: returned, raised, replaced (it gave
               its place to a canvas), or stopped as its lease was lost
    revoked    somebody asked from `at` to `until` to revoke `id`, with `terminate` or without; the `answer` (None: the
               server did not give one)
    ordered    the event `entry` of the stream, whose call is `serial`, is one of those with this `key`
    flow       a canvas, graph or batch is about to be started as flow `id`: `needs`, `behind`, `errbacks`, `answers`
               and `counted` as `tests.chaos.senders.drawing` has them, maps as pairs. Those of its calls that break are
               healed and sent again later
    cancelled  somebody asked from `at` to `until` to cancel the flow `id`, or to revoke what has its stamp (`answer` as
               of `revoked`)
    ticked     the slots of the schedule `kind` from `since` to `until` (ms) were due while beats ran; `now_ms`: the
               server's clock at this moment
    waited     a caller waited from `at` to `until` for the result of `id`, ready to wait for `timeout`, and was told
               (`how`, see `tests.chaos.history.Wait`) a `value`, or nothing
    fault      `number` of the `kind` strikes these `workers` and `pids`; `held`: entries that they had fetched
    over       the fault of this `number` is over
    problem    what must not happen in any case, in words

`at` is the system's monotonic clock, which all processes of a host share.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, TypeAlias

Record: TypeAlias = dict[str, Any]


class Journal:
    """Appends to one file. For any number of threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, what: str, **fields: Any) -> None:
        """One line. Without an `at` it happened now."""
        record = {"what": what, "at": time.monotonic(), "pid": os.getpid(), **fields}
        # A line that SIGKILL tore off has no end: the next one begins by ending it.
        os.write(self._fd, f"\n{json.dumps(record)}\n".encode())

    def close(self) -> None:
        os.close(self._fd)


def read(path: Path) -> list[Record]:
    """All whole lines, by time. A torn line is one of a process that was killed while it wrote: it is passed over."""
    records: list[Record] = []
    for line in path.read_text().splitlines():
        if line:
            try:
                records.append(json.loads(line))
            except ValueError:
                pass
    return sorted(records, key=lambda record: float(record["at"]))
