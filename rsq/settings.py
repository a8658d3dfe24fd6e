"""The settings of one app: one frozen object, made once from code and environment, with the unit in each name."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, replace
from dataclasses import field as settings_field
from typing import Any

from rsq import keys
from rsq.clock import zone_of
from rsq.errors import LONGEST_S, SettingsError
from rsq.hints import unknown_text
from rsq.url import check_kind

ENVIRONMENT_PREFIX = "RSQ_"

DEFAULT_URL = "embedded://"

GREATEST = 2**53
"""Up to here Lua's numbers are exact."""

_UNITS = {"s": 1, "ms": 1000}
"""How many of each unit of time a second has; the unit stands at the end of a setting's name."""
_ABOVE_ZERO = ("lease_s", "broker_timeout_s", "dead_max_age_s", "flow_expires_s", "watchdog_s")
_AT_LEAST_ONE = ("max_message_bytes", "dead_max_length", "max_flow_calls", "max_deliveries", "partitions")
_MOST = {"partitions": 64, "max_flow_calls": 1_000_000}


@dataclass(frozen=True)
class Settings:
    """What an app and its workers go by. Each field can be given to `App(...)`, or as ``RSQ_<FIELD>`` outside.

    Code wins over environment, and environment over the default.
    """

    url: str = settings_field(default=DEFAULT_URL, repr=False)  # it holds a password
    """``redis://``, ``rediss://`` (TLS), ``redis+sentinel://``, ``redis+cluster://``, ``unix://`` or
    ``embedded://[/directory]``."""
    namespace: str = "rsq"
    """First part of every key; two namespaces on one server never meet."""
    partitions: int = 1
    """Over how many partitions new queues are spread, 64 at most; of use on a cluster alone."""
    default_queue: str = "default"
    timezone: str = "UTC"
    """What a datetime without an offset means, and a `crontab` without `tz`: a name such as ``Europe/Paris``."""
    lease_s: float = 10.0
    """How long a worker that fell silent keeps its messages before others take over."""
    broker_timeout_s: float = 5.0
    """Total deadline of one call to the server by a producer, repeats included."""
    wait_replicas: int = 0
    """How many replicas must have a call before its producer goes on; 0 = do not ask."""
    max_message_bytes: int = 1024 * 1024
    """Largest size of a call's packed arguments, and of a packed result."""
    dead_max_length: int = 10_000
    """Dead letters kept per queue; the oldest go first (the server trims in nodes of about a hundred)."""
    dead_max_age_s: float = 30 * 86_400.0
    """Age after which a dead letter goes."""
    flow_expires_s: float = 30 * 86_400.0
    """A flow, such as a chain or a batch, that makes no progress for so long is ended with an error."""
    max_flow_calls: int = 1_000_000
    """Calls of one flow, callbacks included."""
    prefetch_ms: int = 100
    """How much work, in milliseconds of expected run time, a child keeps ahead."""
    max_deliveries: int = 16
    """Deliveries after which a message that was never seen to run is given up: hosts died under it again and again."""
    unknown_task_grace_s: float = 60.0
    """How long a message whose task nobody has registered is put off (a rolling deploy) before it is a dead letter."""
    shutdown_timeout_s: float = 30.0
    """How long a stopping worker waits for running tasks before it hands them back."""
    watchdog_s: float = 30.0
    """A child that has taken no step for so long, though it runs no body, is replaced."""
    allow_eviction: bool = False
    """Accept a server whose maxmemory-policy may evict queues."""
    log_arguments: bool = False
    """Write the arguments of calls into the log."""

    def __post_init__(self) -> None:
        check_kind(self.url)
        keys.check_namespace(self.namespace)
        keys.check_queue(self.default_queue)
        zone_of(self.timezone)
        for field in fields(self):
            if _kind(field) in (int, float):
                _check_bounds(field.name, getattr(self, field.name))

    @property
    def lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    @property
    def dead_max_age_ms(self) -> int:
        return int(self.dead_max_age_s * 1000)

    @property
    def flow_expires_ms(self) -> int:
        return int(self.flow_expires_s * 1000)

    def with_values(self, **values: Any) -> Settings:
        """A copy with some fields changed; None leaves a field as it is."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def _check_bounds(name: str, value: float) -> None:
    """Raises SettingsError for a number that is too small or too large, or none at all."""
    if name in _ABOVE_ZERO and not value > 0:
        raise SettingsError(f"{name} must be above 0, not {value}")
    least = 1 if name in _AT_LEAST_ONE else 0
    if not value >= least:  # NaN, too
        raise SettingsError(f"{name} must be {'at least 1' if least else 'a number from 0 on'}, not {value}")
    unit = name.rpartition("_")[2]
    longest = LONGEST_S * _UNITS[unit] if unit in _UNITS else _MOST.get(name, GREATEST)
    if value > longest:
        what = "a hundred years" if unit in _UNITS else str(longest)
        raise SettingsError(f"{name} must be {what} at most, not {value}")


def load(values: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from code (`values`, None means not given), else from the environment, else the defaults.

    Raises SettingsError for a name that is no setting and for a value of the wrong kind.
    """
    environment = os.environ if environment is None else environment
    known = {field.name: field for field in fields(Settings)}
    for name in values:
        if name not in known:
            raise SettingsError(unknown_text("setting", name, "setting", known))
    chosen: dict[str, Any] = {}
    for name, field in known.items():
        if values.get(name) is not None:
            chosen[name] = _checked(field, values[name])
        elif text := environment.get(ENVIRONMENT_PREFIX + name.upper()):
            chosen[name] = _parsed(field, text)
    return Settings(**chosen)


def _kind(field: Field[Any]) -> type:
    assert field.default is not MISSING, "every setting has a default, which tells its type"
    return type(field.default)


def _checked(field: Field[Any], value: Any) -> Any:
    kind = _kind(field)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf  # which no setting may be
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        given = type(value).__name__ if field.name == "url" else repr(value)  # a URL holds a password
        raise SettingsError(f"setting {field.name} takes {kind.__name__}, not {given}")
    return value


def _parsed(field: Field[Any], text: str) -> Any:
    kind = _kind(field)
    variable = ENVIRONMENT_PREFIX + field.name.upper()
    if kind is bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise SettingsError(f"{variable} must be true or false, not {text!r}")
    try:
        return kind(text)
    except ValueError:
        what = {int: "a whole number", float: "a number"}.get(kind, "text")
        raise SettingsError(f"{variable} must be {what}, not {text!r}") from None
