"""Where and when a call goes, as its options say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """Where and when a message goes; all default means one plain XADD.

    delay_ms    wait this long, by the server's clock
    eta_ms      or until this moment, ms since the epoch
    max_length  refuse when the queue holds this many messages, running ones included; 0 = no bound
    room_wait_s  wait so long for room in a full queue before that is an error
    unique      run this task id once while its marker lives
    dedupe_key  run one call with this key while its marker lives
    dedupe_ttl_ms  life of either marker
    dedupe_until  what else ends the marker of the key: "done" or "started", of the call; "ttl" = nothing
    replaces    a duplicate gives the call that waits its arguments
    debounce_ms  and puts it off: it starts so long after the last one
    raises      a duplicate is an error
    replicas    wait until so many replicas have it; None = as many as the setting `wait_replicas` says
    """

    delay_ms: int | None = None
    eta_ms: int | None = None
    max_length: int = 0
    room_wait_s: float = 0.0
    unique: bool = False
    dedupe_key: str = ""
    dedupe_ttl_ms: int = 86_400_000
    dedupe_until: str = "ttl"
    replaces: bool = False
    debounce_ms: int | None = None
    raises: bool = False
    replicas: int | None = None


PLAIN = Placement()


def marker_key(key: str, version: int | None) -> str:
    """A dedupe key as its marker has it. Each version of a key is a call of its own, and meets no key without one.

    What makes older versions harmless is asked when they start.
    """
    if version is not None:
        return f"@{version}:{key}"
    return f"@{key}" if key.startswith("@") else key
