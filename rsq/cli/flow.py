"""`rsq flow`: look at flows, canvases and batches among them, and cancel them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain, islice

import click

from rsq.broker.flow_looks import Flow, NodeState
from rsq.calls.message import check_id
from rsq.calls.plan import numbers_in
from rsq.cli.common import Context, json_option, local_time, pass_context, plural, shortened
from rsq.cli.out import EXIT_NO, document, fail, say, table


@click.group()
def flow() -> None:
    """Flows: chains, groups, chords, graphs and batches that are on the server.

    \b
    Example:
      rsq flow list
      rsq flow cancel 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1
    """


@flow.command("list")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="How many at most.")
@json_option
@pass_context
def list_(context: Context, limit: int, as_json: bool) -> None:
    """List flows that have not succeeded, the ones first that will be ended or forgotten next.

    \b
    Example:
      rsq flow list --limit 10
    """
    flows = context.app_or_plain().client.flows
    found = [each for flow_id in islice(flows.ids(), limit) if (each := flows.look(flow_id)) is not None]
    if as_json:
        document([asdict(each) for each in found])
    elif not found:
        say("no flows: all that were started have succeeded, or were forgotten")
    else:
        rows = [(each.id, *_numbers(each), local_time(each.created_ms), _what(each)) for each in found]
        table(("ID", "STATE", "DONE", "FAILED", "OPEN", "STARTED", "WHAT"), rows, right=(2, 3, 4))


@flow.command()
@click.argument("flow_id", metavar="ID")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="How many calls at most.")
@json_option
@pass_context
def show(context: Context, flow_id: str, limit: int, as_json: bool) -> None:
    """Show one flow with its calls, as a tree: what stands behind an arrow waits for what is above it.

    \b
    Example:
      rsq flow show 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1
    """
    client = context.app_or_plain().client
    found = client.flows.look(check_id(flow_id))
    if found is None:
        fail(f"no flow {flow_id}: it has ended long ago, or never began; see rsq flow list", code=EXIT_NO)
    nodes = list(islice(chain.from_iterable(client.flows.pages(flow_id)), limit))
    if as_json:
        document({**asdict(found), "nodes": [{**asdict(node), "outs": list(numbers_in(node.outs))} for node in nodes]})
        return
    state, done, failed, left = _numbers(found)
    rows = [
        ("id", found.id),
        ("what", found.description or "-"),
        ("state", state),
        ("calls", f"{found.total}: {done} done, {failed} failed, {left} open"),
        ("started", local_time(found.created_ms)),
        ("ended", local_time(found.ended_ms) if found.ended_ms else "-"),
    ]
    for name, value in rows:
        say(f"{name:<10} {value}")
    say("")
    if not nodes:
        say("its calls are forgotten, since it has succeeded" if found.state == "succeeded" else "it has no calls")
        return
    table(
        ("CALL", "STATE", "TASK", "ID"),
        [(label, node.state, node.task or "-", node.id) for label, node in _tree(nodes)],
    )
    if found.size > len(nodes):
        say(f"... and {found.size - len(nodes)} more: give --limit")


@flow.command()
@click.argument("flow_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--terminate", is_flag=True, help="Interrupt what runs, too.")
@pass_context
def cancel(context: Context, flow_ids: tuple[str, ...], terminate: bool) -> None:
    """End flows: what waits in them never starts, and whoever waits for them gets TaskRevoked.

    \b
    Example:
      rsq flow cancel 6f1c0c7be0a84c86a9a0d2f2a7a3c5d1 --terminate
    """
    client = context.app_or_plain().client
    cancelled = 0
    for flow_id in flow_ids:
        if client.cancel_flow(check_id(flow_id), terminate):
            cancelled += 1
        else:
            say(f"rsq: flow {flow_id} has ended, or is not there; see rsq flow list", err=True)
    say(f"cancelled {plural(cancelled, 'flow')}")
    sys.exit(0 if cancelled == len(flow_ids) else EXIT_NO)


def _numbers(found: Flow) -> tuple[str, int, int, int]:
    state = found.state if found.sealed else "open"
    return state, found.ok, found.bad, found.total - found.ok - found.bad


def _what(found: Flow) -> str:
    return shortened(found.description, 50) or "-"


def _tree(nodes: Sequence[NodeState]) -> Iterable[tuple[str, NodeState]]:
    """Each node once, with the label that shows where it stands: behind the last of those that it waits for."""
    by_number = {node.number: node for node in nodes}
    outs = {node.number: [out for out in numbers_in(node.outs) if out in by_number] for node in nodes}
    left = dict.fromkeys(by_number, 0)
    for number in outs:
        for out in outs[number]:
            left[out] += 1
    open_: list[tuple[int, str, str]] = [(number, "", "") for number in reversed(by_number) if not left[number]]
    while open_:
        number, indent, arrow = open_.pop()
        node = by_number[number]
        yield f"{indent}{arrow}{_name(node)}", node
        ready = []
        for out in outs[number]:
            left[out] -= 1
            if not left[out]:
                ready.append(out)
        # A chain goes straight down; only where it divides does it move to the right.
        deeper = indent if len(ready) == 1 else f"{indent}  "
        open_ += [(out, deeper, "-> ") for out in reversed(ready)]


def _name(node: NodeState) -> str:
    if not node.id:
        return "(all of these)"
    name = node.name or node.task.rpartition(".")[2]
    return f"{name} (errback)" if node.errback else name
