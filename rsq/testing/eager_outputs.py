"""Outputs in eager mode: in memory, whole by the time anybody watches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rsq.broker.watched import Watched
from rsq.calls.output import Place
from rsq.errors import ResultTimeout


@dataclass
class MemoryOutput:
    """What the runs of one call have emitted. `way`: how the call has ended; '' = it has not."""

    length: int
    run: int = 0
    n: int = 0
    values: list[tuple[Place, bytes]] = field(default_factory=list)
    way: str = ""

    def emit(self, value: bytes) -> None:
        self.n += 1
        self.values.append((Place(self.run, self.n), value))
        del self.values[: -self.length]

    async def aemit(self, value: bytes) -> None:
        self.emit(value)


class MemoryOutputs:
    """Those of all calls, by their keys."""

    def __init__(self) -> None:
        self._by_key: dict[str, MemoryOutput] = {}

    def begin(self, key: str, length: int) -> MemoryOutput:
        """The output of a run that emits for the first time."""
        output = self._by_key.setdefault(key, MemoryOutput(length))
        output.run += 1
        return output

    def end(self, key: str, way: str) -> None:
        """The call has ended in this way, if it has an output."""
        if key in self._by_key:
            self._by_key[key].way = way

    def forget(self, key: str) -> None:
        self._by_key.pop(key, None)

    def bring(self, watched: Watched, results: Mapping[str, bytes]) -> None:
        """Let somebody see what there is. Raises ResultTimeout where the call has not ended: it never will for him."""
        keys = [key.decode() for key in watched.keys]
        for output_key, result_key in zip(keys[::2], keys[1::2], strict=True):
            output, result = self._by_key.get(output_key), results.get(result_key)
            if output is not None or result is not None:
                watched.bring(output.values if output else [], output.way if output else "", result)
                break
        if watched:
            raise ResultTimeout(
                "nothing has come of the call, and in eager mode nothing will: it runs still, or ended without a result"
            )
