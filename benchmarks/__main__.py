"""`python -m benchmarks` in a checkout: the same as `rsq bench`."""

from __future__ import annotations

from rsq.cli.bench import bench

if __name__ == "__main__":
    bench(prog_name="python -m benchmarks")
