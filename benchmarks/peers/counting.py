"""What a task of a peer does: it counts, and the process that ran the last one tells when the first and last were."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

TOLD_BY = "RSQ_BENCH_COUNT"
"""Environment variable of a worker: ``first:last:path``. The clock runs between these two numbers of bodies."""

_first, _last, _path = (os.environ.get(TOLD_BY) or "0:0:").split(":", 2)
_numbers = itertools.count(1)
_began = 0.0


def count() -> None:
    """One body more. To be called in each, by whatever thread."""
    global _began
    number = next(_numbers)
    if number == int(_first):
        _began = time.monotonic()
    elif number == int(_last):
        took = time.monotonic() - _began
        half_written = Path(f"{_path}.new")
        half_written.write_text(str(took))
        half_written.rename(_path)
