"""`python -m benchmarks` in a checkout: the same as `rsq bench`, and `--write-docs` puts saved runs into the docs."""

from __future__ import annotations

import sys

from benchmarks.docs import main
from rsq.cli.bench import bench

if __name__ == "__main__":
    if sys.argv[1:2] == ["--write-docs"]:
        main()
    else:
        bench(prog_name="python -m benchmarks")
