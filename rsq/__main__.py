"""``python -m rsq`` is the command line."""

from __future__ import annotations

from rsq.cli.main import main

if __name__ == "__main__":
    main()
