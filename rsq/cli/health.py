"""`rsq health`: for liveness and readiness probes."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict

import click

from rsq.cli.common import Context, json_option, pass_context
from rsq.cli.out import document, say
from rsq.worker.health import all_health


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether it consumes, not only whether it lives.")
@click.option("--pid", type=int, help="Only the worker with this process id; default: all of this user on this host.")
@json_option
@pass_context
def health(context: Context, ready: bool, pid: int | None, as_json: bool) -> None:
    """Ask the workers on this host how they are. Exit code 0 when all are well, 1 when one is not or none is there.

    With -A (or RSQ_APP) and --namespace it speaks of the workers of that app, there, alone. Asks no server: a server
    that is away makes a worker unready, never dead. Imports no app.

    \b
    Example:
      rsq health
      rsq -A shop.tasks health --ready
    """
    target, namespace = context.app_name or os.environ.get("RSQ_APP") or None, context.overrides.get("namespace")
    now = time.monotonic()
    rows = []
    for worker in all_health():
        if pid in (None, worker.pid) and worker.is_of(target, namespace):
            problem = worker.why_not_ready(now) if ready else worker.why_dead(now)
            rows.append((worker, problem))
    well = bool(rows) and not any(problem for _, problem in rows)
    if as_json:
        document({"ok": well, "workers": [{**asdict(worker), "problem": problem} for worker, problem in rows]})
    elif not rows:
        of = "".join((f" of {target}" if target else "", f" in namespace {namespace}" if namespace else ""))
        say(f"no worker{of} of this user on this host", err=True)
    for worker, problem in () if as_json else rows:
        good = "ready" if ready else "alive"
        say(f"{worker.worker_id}: {problem or good}", err=bool(problem))
    sys.exit(0 if well else 1)
