"""The Lua scripts: one file for each transition, read once, called by SHA.

A file may name shared pieces in lines ``-- include: _name``, which are put in its place (in a function, too, where only
some calls need them), and the kind of its rows in a line ``-- rows: <kind>``, see `rsq.broker.rows`. A script is
addressed by the SHA of its text, so an old and a new release of rsq work side by side on one server.

In a cluster what is published goes by sharded channels, which cost the other nodes nothing: there a script that
publishes has a text of its own.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources

from rsq.broker import rows

_ROWS = re.compile(r"^-- rows: (\w+)$", re.MULTILINE)
_INCLUDE = re.compile(r"^ *-- include: (\w+)$", re.MULTILINE)


_PUBLISH = "local PUBLISH = 'PUBLISH'\n"
_SPUBLISH = "local PUBLISH = redis.REDIS_VERSION_NUM and 'SPUBLISH' or 'PUBLISH'  -- both came with Redis 7.0\n"


class Script:
    """One script: its `name` (the verb of the transition), `source` text and `sha`.

    sharded  the script of the same name for clusters; itself where it publishes nothing
    """

    __slots__ = ("name", "sha", "sharded", "source")

    def __init__(self, name: str, source: str | None = None) -> None:
        self.name = name
        self.source = _put_together(name) if source is None else source
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
        publishes = source is None and "redis.call(PUBLISH," in self.source
        self.sharded = Script(name, self.source.replace(_PUBLISH, _SPUBLISH)) if publishes else self

    def __repr__(self) -> str:
        return f"<Script {self.name}>"


def _put_together(name: str) -> str:
    text = _read(name)
    first = _ROWS.search(text)
    text = _ROWS.sub(lambda match: rows.as_lua(match[1], first is not None and match.start() > first.start()), text)
    return _included(text)


def _included(text: str) -> str:
    return _INCLUDE.sub(lambda match: _included(_read(match[1])), text)


def _read(name: str) -> str:
    return (resources.files("rsq.broker") / "lua" / f"{name}.lua").read_text("utf-8")


ENQUEUE = Script("enqueue")
ARRIVED = Script("arrived")
FETCH = Script("fetch")
TAKE = Script("take")
DISCLAIM = Script("disclaim")
BEGIN = Script("begin")
EMIT = Script("emit")
PREPARE = Script("prepare")
COMPLETE = Script("complete")
DROP_WAKES = Script("drop_wakes")
RETRY = Script("retry")
BURY = Script("bury")
RELEASE = Script("release")
REGISTER = Script("register")
RENEW = Script("renew")
RETIRE = Script("retire")
RECONCILE = Script("reconcile")
REVOKE = Script("revoke")
REDRIVE = Script("redrive")
PURGE = Script("purge")
FIRE = Script("fire")
HAND_OVER = Script("hand_over")
DEFINE = Script("define")
ADVANCE = Script("advance")
FLOW = Script("flow")
GO_ON = Script("go_on")
FLOW_CANCEL = Script("flow_cancel")
FLOW_REVOKE = Script("flow_revoke")
FLOW_ADD = Script("flow_add")
FLOW_SEAL = Script("flow_seal")
REPLACE = Script("replace")
ASSIGN = Script("assign")
VACATE = Script("vacate")
FEED = Script("feed")
PUBLISH = Script("publish")
TELL = Script("tell")
TRIM = Script("trim")

ALL = (
    ENQUEUE,
    ARRIVED,
    FETCH,
    TAKE,
    DISCLAIM,
    BEGIN,
    EMIT,
    PREPARE,
    COMPLETE,
    DROP_WAKES,
    RETRY,
    BURY,
    RELEASE,
    REGISTER,
    RENEW,
    RETIRE,
    RECONCILE,
    REVOKE,
    REDRIVE,
    PURGE,
    FIRE,
    HAND_OVER,
    DEFINE,
    ADVANCE,
    FLOW,
    GO_ON,
    FLOW_CANCEL,
    FLOW_REVOKE,
    FLOW_ADD,
    FLOW_SEAL,
    REPLACE,
    ASSIGN,
    VACATE,
    FEED,
    PUBLISH,
    TELL,
    TRIM,
)
