"""Stamps: what is put on every call of a canvas, readable in the call as `self.request.stamps`.

A visitor says what goes on each part. It is led through a canvas as in Celery: into a chain step by step, into a group
member by member; what follows a group makes a chord of both; callbacks come before the parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rsq.canvas.data import SignatureData
from rsq.errors import SettingsError

if TYPE_CHECKING:
    from typing import TypeAlias

    Headers: TypeAlias = "Mapping[str, Any] | None"

NAMES = "stamped_headers"
"""In what a hook gives: which of it are stamps; all others are headers of the call. Without it all are stamps."""


class StampingVisitor(ABC):
    """Says what is to be stamped. Each hook gets a part and the stamps that have come so far, and gives more, or None.

    The hooks of a chain, a group and a chord's header give what all in it get; those that end one give nothing.
    """

    @abstractmethod
    def on_signature(self, sig: Any, /, **headers: Any) -> Headers:
        """The stamps of one call."""

    def on_chain_start(self, chain: Any, /, **headers: Any) -> Headers:
        """Before the steps of a chain."""
        return None

    def on_chain_end(self, chain: Any, /, **headers: Any) -> None:  # noqa: B027 - most need nothing for it
        """Behind them."""

    def on_group_start(self, group: Any, /, **headers: Any) -> Headers:
        """Before the members of a group."""
        return None

    def on_group_end(self, group: Any, /, **headers: Any) -> None:  # noqa: B027
        """Behind them."""

    def on_chord_header_start(self, sig: Any, /, **headers: Any) -> Headers:
        """Before the header of a chord: as a group, unless this says otherwise."""
        return self.on_group_start(sig.header, **headers)

    def on_chord_header_end(self, sig: Any, /, **headers: Any) -> None:
        """Behind it."""
        self.on_group_end(sig.header, **headers)

    def on_chord_body(self, sig: Any, /, **headers: Any) -> Headers:
        """Before the body of a chord."""
        return None

    def on_callback(self, callback: Any, /, **headers: Any) -> Headers:
        """Before what `link` has follow."""
        return None

    def on_errback(self, errback: Any, /, **headers: Any) -> Headers:
        """Before what `link_error` has follow."""
        return None


class _Plain(StampingVisitor):
    """Has no stamps of its own."""

    def on_signature(self, sig: Any, /, **headers: Any) -> Headers:
        return None


class Stamper:
    """Stamps one canvas.

    append  a name that is there already gets a list of both values; else what comes from further out stays
    """

    def __init__(self, visitor: StampingVisitor | None, append: bool) -> None:
        self._visitor = visitor or _Plain()
        self._append = append

    def stamp(self, part: Any, stamps: dict[str, Any]) -> None:
        """Stamp a signature that belongs to nobody else, with all that is in it.

        stamps  what has come so far, with NAMES among it. Raises SettingsError, and what a hook raises
        """
        kind, visitor = part.kind, self._visitor
        if kind is None:
            stamps = self._more(stamps, visitor.on_signature(part, **stamps))
            self._callbacks(part, stamps)
            self._put(part, stamps)
        elif kind == "group":
            stamps = self._more(stamps, visitor.on_group_start(part, **stamps))
            self._members(part, stamps)
            visitor.on_group_end(part, **stamps)
        else:
            if kind == "chain":
                stamps = self._more(stamps, visitor.on_chain_start(part, **stamps))
            self._callbacks(part, stamps)
            self._steps(part.own_tasks(), stamps)
            if kind == "chain":
                visitor.on_chain_end(part, **stamps)

    def _steps(self, steps: list[Any], stamps: dict[str, Any]) -> None:
        visitor = self._visitor
        for number, step in enumerate(steps):
            if step.kind == "group" and number + 1 < len(steps):
                chord = SignatureData._kinds["chord"](steps[number:])
                inner = self._more(stamps, visitor.on_chord_header_start(chord, **stamps))
                self._members(step, inner)
                visitor.on_chord_header_end(chord, **inner)
                stamps = self._more(stamps, visitor.on_chord_body(chord, **stamps))
            else:
                self.stamp(step, stamps)

    def _members(self, group: Any, stamps: dict[str, Any]) -> None:
        self._callbacks(group, stamps)
        for member in group.own_tasks():
            self.stamp(member, stamps)

    def _callbacks(self, part: Any, stamps: dict[str, Any]) -> None:
        part.links = tuple(link.clone() for link in part.links)
        part.errbacks = tuple(errback.clone() for errback in part.errbacks)
        for link in part.links:
            self.stamp(link, self._more(stamps, self._visitor.on_callback(link, **stamps)))
        for errback in part.errbacks:
            self.stamp(errback, self._more(stamps, self._visitor.on_errback(errback, **stamps)))

    def _more(self, stamps: dict[str, Any], given: Headers) -> dict[str, Any]:
        """With what a hook gave."""
        if given is None:
            return stamps
        if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given):
            raise SettingsError(f"a hook of a StampingVisitor gives a map from names to values, or None, not {given!r}")
        values = {name: value for name, value in given.items() if name != NAMES}
        names = [*stamps[NAMES], *given.get(NAMES, values)]
        return {**self._merged({**stamps}, values), NAMES: list(dict.fromkeys(names))}

    def _merged(self, first: dict[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
        for name, value in others.items():
            if name not in first:
                first[name] = value
            elif self._append and first[name] != value:
                first[name] = [*_listed(first[name]), *_listed(value)]
        return first

    def _put(self, call: Any, stamps: dict[str, Any]) -> None:
        names = stamps[NAMES]
        missing = [name for name in names if name not in stamps]
        if missing:
            raise SettingsError(f"{NAMES} names {missing[0]!r}, for which the hook gives no value")
        stamped = {name: stamps[name] for name in names}
        headers = {name: value for name, value in stamps.items() if name != NAMES and name not in stamped}
        options: dict[str, Any] = {}
        if stamped:
            options["stamps"] = self._merged(stamped, call.options.get("stamps", {}))
        if headers:
            options["headers"] = {**call.options.get("headers", {}), **headers}
        call.set(**options)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
