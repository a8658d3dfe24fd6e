"""Which node of a cluster serves a tag: the map of slots, when it is read anew, and how a connection finds its way.

ASK is never followed: while a slot moves key by key, a script at its target would work on keys that are not there yet.
Whoever is told ASK waits, as for a server that is loading. MOVED is a new entry of the map.
"""

from __future__ import annotations

import random
import re
from binascii import crc_hqx
from bisect import bisect_right
from collections.abc import Sequence
from itertools import zip_longest
from operator import itemgetter
from time import monotonic
from typing import Any, TypeAlias

from rsq.broker.address import ClusterAddress
from rsq.broker.deadline import Deadline
from rsq.broker.exchange import Dial, Opening
from rsq.broker.faults import FAULTS, Refusal, translated
from rsq.broker.stragglers import Identity, Stragglers, entrance
from rsq.broker.wire import packed
from rsq.errors import BrokerRefused, BrokerUnavailable

Place: TypeAlias = "tuple[str, int]"
"""Host and port of a node."""

SLOTS = 16384

REFRESH_EVERY_S = 0.1
"""The map is not read more often than this, whoever asks."""

NODE_TIMEOUT_S = 1.0
"""One node may take this long to tell the map, or a third of the time that is left: others are to be asked, too."""

_MOVED = re.compile(r"MOVED (\d+) (\S*):(\d+)")
_NAMELESS = "?"
"""In place of the host of a node that is to go by a host name, and has none."""

_TAG = re.compile(rb"\{([^{}\r\n]+)\}")
_UNNAMED = ", but nodes that have no host name are to go by one: give each its cluster-announce-hostname"
_LOAD = b"*3\r\n$6\r\nSCRIPT\r\n$4\r\nLOAD\r\n"


def slot_of(tag: str) -> int:
    """The hash slot of a tag, written without its braces: CRC16 (XMODEM) modulo 16384, as Redis Cluster defines it."""
    return crc_hqx(tag.encode(), 0) % SLOTS


def tag_of(request: bytes) -> str | None:
    """The tag of the keys of a packed command; None where it has no key. In what rsq sends keys come before values."""
    if request.startswith(_LOAD):
        return None
    found = _TAG.search(request)
    return None if found is None else found[1].decode()


def loads_script(request: bytes) -> bool:
    """Whether a packed command is SCRIPT LOAD, which each node needs for itself."""
    return request.startswith(_LOAD)


class SlotMap:
    """Masters by slots, from CLUSTER SLOTS. For any number of threads, without a lock that a fork could leave locked.

    seeds  nodes that the URL names; they are asked as long as no other is known, and again when none of those answers
    """

    def __init__(self, seeds: Sequence[Place]) -> None:
        self._seeds = tuple(seeds)
        self._ranges: list[tuple[int, int, Place]] = []
        self._moved: dict[int, Place] = {}
        self.nameless = False  # whether a master has no name by which others may reach it
        self._read_at = 0.0
        self._doubted = True

    def master(self, slot: int) -> Place | None:
        """The node to ask for a slot; None where the map has to be read first, or holds nobody for it."""
        return None if self._doubted and monotonic() - self._read_at >= REFRESH_EVERY_S else self.known(slot)

    def known(self, slot: int) -> Place | None:
        """Who held a slot when that was last heard."""
        ranges = self._ranges
        if slot in self._moved or not ranges:
            return self._moved.get(slot)
        first, last, place = ranges[max(0, bisect_right(ranges, slot, key=itemgetter(0)) - 1)]
        return place if first <= slot <= last else None

    def moved(self, slot: int, place: Place) -> None:
        """A node said MOVED."""
        self._moved[slot] = place

    def doubt(self) -> None:
        """A node did not answer, or not as a master does: the map is read anew before the next connection."""
        self._doubted = True

    def nodes(self) -> list[Place]:
        """Whom to ask for the map: known masters and seeds in turn; in a random order, as no node is there for all.

        Where all nodes have got other addresses since, only a seed tells them.
        """
        known = list({place for _, _, place in self._ranges} | set(self._moved.values()))
        seeds = [place for place in self._seeds if place not in known]
        random.shuffle(known)
        random.shuffle(seeds)
        return [place for pair in zip_longest(known, seeds) for place in pair if place is not None]

    def read(self, asked: Place, reply: Any) -> None:
        """Take over an answer to CLUSTER SLOTS.

        asked  the node that gave it: one that does not know its own address names none, and means the one that was used
        """
        ranges = []
        self.nameless = False
        for first, last, master, *_replicas in reply:
            host = (master[0] or b"").decode()
            if host == _NAMELESS:
                self.nameless = True
            else:
                ranges.append((int(first), int(last), (host or asked[0], int(master[1]))))
        self._ranges, self._moved = sorted(ranges), {}
        self._read_at, self._doubted = monotonic(), not ranges


class Cluster:
    """The nodes of one cluster. Holds no connection; for any number of threads and event loops."""

    def __init__(self, address: ClusterAddress, shown: str) -> None:
        self._address = address
        self._shown = shown
        self._slots = SlotMap(address.seeds)
        self.sharded = True  # whether the nodes have sharded channels, which came with Redis 7.0
        self._stragglers: dict[Place, Stragglers] = {}

    def opening(self, tag: str, deadline: Deadline) -> Opening[Identity | None]:
        """How a connection to the master of a tag is made.

        Raises BrokerUnavailable where nobody serves it now, and BrokerRefused where nobody tells who does.
        """
        place = yield from self._master(slot_of(tag), deadline)
        options = self._address.node | {"host": place[0], "port": place[1]}
        try:
            yield Dial(self._address.kind, options, deadline)
            return (yield from self.stragglers(place).greeting(options, deadline, _judge(place)))
        except FAULTS:
            self._slots.doubt()
            raise

    def holder(self, tag: str) -> Place | None:
        """The master of a tag, as far as it is known without asking."""
        return self._slots.known(slot_of(tag))

    def stragglers(self, place: Place) -> Stragglers:
        """Ids of connections are a node's own."""
        return self._stragglers.setdefault(place, Stragglers())

    def hear(self, refusal: str) -> None:
        """A node refused a command: what that tells of the map."""
        moved = _MOVED.match(refusal)
        if moved and moved[2] not in ("", _NAMELESS):
            self._slots.moved(int(moved[1]), (moved[2].strip("[]"), int(moved[3])))
        else:
            self._slots.doubt()

    def doubt(self) -> None:
        """A connection to a node broke."""
        self._slots.doubt()

    def _master(self, slot: int, deadline: Deadline) -> Opening[Place]:
        place = self._slots.master(slot)
        if place is not None:
            return place
        faults: list[str] = []
        answered = False
        refused: BrokerRefused | None = None
        for node in self._slots.nodes():
            own = deadline.within(min(NODE_TIMEOUT_S, deadline.left_s() / 3))
            try:
                options = self._address.node | {"host": node[0], "port": node[1]}
                yield Dial(self._address.kind, options, own)
                *entered, reply = yield [*entrance(options), packed("CLUSTER", "SLOTS")], own
                for each in (*entered, reply):
                    if isinstance(each, Refusal):
                        raise each
            except FAULTS as fault:
                faults.append(f"{shown_place(node)}: {str(fault).rstrip('.') or type(fault).__name__}")
                error = translated(fault, self._shown)
                if isinstance(error, BrokerRefused):
                    refused = refused or error
                continue
            self._slots.read(node, reply)
            # So did a fourth field of each node: by it they are known without a right to ask.
            self.sharded = all(len(master) > 3 for _, _, master, *_ in reply)
            place = self._slots.master(slot)
            if place is not None:
                return place
            faults.append(f"{shown_place(node)}: nobody serves slot {slot}{_UNNAMED * self._slots.nameless}")
            answered = True
        # What waiting does not mend: a wrong password, a right that lacks, a server that is no cluster.
        if refused:
            raise refused
        told = "; ".join(faults)
        if answered:
            raise BrokerUnavailable(f"{self._shown} cannot serve now: {told}")
        raise BrokerUnavailable(f"{self._shown} cannot be reached ({told}): check that it runs, and its URL")


def _judge(place: Place) -> Any:
    """A connection that finds no master there counts as a fault: the map is old."""

    def judge(role: Any) -> None:
        if isinstance(role, Refusal):
            raise role
        if role[0] != b"master":
            raise ConnectionError(f"{shown_place(place)} is a {role[0].decode()} now: a failover is under way")

    return judge


def shown_place(place: Place) -> str:
    """``host:port``, an IPv6 address in brackets."""
    host, port = place
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# First and last version that crash while a client is blocked in a read on a slot that moves, which is how rsq waits.
# redis/redis#13311; valkey-io/valkey#563 and #526.
_CRASHES = {"redis": ((7, 2, 0), (7, 2, 6)), "valkey": ((7, 2, 0), (7, 2, 5))}


def known_crash(server: str, version: str) -> str:
    """What to warn of, for a server of this name (``redis``, ``valkey``) and version, or ''."""
    number = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if server not in _CRASHES:
        return ""
    first, last = _CRASHES[server]
    if not first <= number <= last:
        return ""
    mended = f"{last[0]}.{last[1]}.{last[2] + 1}"
    return f"{server} {version} may crash when a slot is moved while workers wait: update to {mended} or newer"
