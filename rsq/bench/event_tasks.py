"""The tasks that are measured, and one of a source: a worker that reads a stream does more than others."""

from __future__ import annotations

from collections.abc import Mapping

from rsq.bench.events import STREAM
from rsq.bench.tasks import app


@app.on(STREAM, group="bench", queue=app.settings.default_queue)
def on_event(event: Mapping[str, str]) -> None:
    """The usual task of a source."""
