"""The states of a call, and the transitions between them: one Lua script for each.

A call is in exactly one place at a time: ready (in a stream, not delivered), delayed (in the zset), running (delivered,
in the pending list), done (its outcome is committed) or dead (a dead letter).
"""

from __future__ import annotations

from enum import Enum


class State(str, Enum):
    """What `AsyncResult.state` says; the names are Celery's."""

    PENDING = "PENDING"
    """Waiting, delayed, or never heard of: Redis cannot tell a call that is not there from one that expired."""
    STARTED = "STARTED"
    """A worker reported that it is running the call; reports come every few seconds, so short tasks never show it."""
    RETRY = "RETRY"
    """An attempt failed; the next one waits for its time."""
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    REVOKED = "REVOKED"
    """It was cancelled or expired before it started."""

    def __str__(self) -> str:
        return self.value


FINAL = frozenset({State.SUCCESS, State.FAILURE, State.REVOKED})
"""No transition leads out of these, but for a redrive by hand."""

ENDINGS = ("succeeded", "ignored", "expired", "superseded", "revoked", "dead", "purged", "lost")
"""Each way in which a call ends: with it goes all that the call holds."""

TRANSITIONS: dict[str, tuple[str, str]] = {
    "enqueue": ("", "ready or delayed"),
    "arrived": ("", ""),
    "fetch": ("ready", "running"),
    "take": ("running", "taken"),
    "disclaim": ("taken", "done"),
    "begin": ("running", "running"),
    "emit": ("running or taken", "running or taken"),
    "prepare": ("running or taken", "running or taken"),
    "complete": ("running or taken", "done"),
    "drop_wakes": ("", ""),
    "retry": ("running or taken", "delayed"),
    "bury": ("running or taken", "dead"),
    "release": ("running", "ready"),
    "register": ("", ""),
    "renew": ("", ""),
    "retire": ("running", "ready"),
    "reconcile": ("running", "ready"),
    "revoke": ("delayed", "done"),
    "redrive": ("dead", "ready"),
    "purge": ("ready or delayed", ""),
    "fire": ("", "ready or delayed"),
    "hand_over": ("", ""),
    "define": ("", ""),
    "advance": ("", ""),
    "flow": ("", "ready or delayed"),
    "go_on": ("", "ready or delayed"),
    "flow_cancel": ("", ""),
    "flow_revoke": ("", ""),
    "flow_add": ("", "ready or delayed"),
    "flow_seal": ("", ""),
    "replace": ("running or taken", "ready or delayed"),
    "assign": ("", ""),
    "vacate": ("", ""),
    "feed": ("", "ready"),
    "publish": ("", ""),
    "tell": ("", ""),
    "trim": ("", ""),
}
"""Script name -> (from, to). "taken" is running after an early acknowledgement (`acks_late=False`)."""
