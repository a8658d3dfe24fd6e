"""`rsq server`: start, stop and look at the embedded server."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click

from rsq.broker.embedded import EmbeddedServer, Status, from_url
from rsq.cli.common import Context, json_option, pass_context
from rsq.cli.out import document, say
from rsq.errors import SettingsError

NOT_RUNNING = 3

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="Directory of the server. Default: that of the app, of --url or of RSQ_URL if it is an embedded:// URL, else "
    "RSQ_EMBEDDED_DIR, else ~/.local/state/rsq/embedded.",
)


@click.group()
def server() -> None:
    """Start, stop and look at the embedded server.

    It is a real Valkey or Redis server on a unix socket, one for each directory, and it keeps its data on disk.
    rsq uses it, and starts it, where no URL is given.

    \b
    Example:
      rsq server start
    """


@server.command()
@_directory
@pass_context
def start(context: Context, directory: Path | None) -> None:
    """Start the server, unless it runs already.

    \b
    Example:
      rsq server start --dir ./queue
    """
    embedded = _choose(context, directory)
    started = embedded.start()
    say(f"{'started' if started else 'already running'}: {_line(embedded.status())}")


@server.command()
@_directory
@pass_context
def stop(context: Context, directory: Path | None) -> None:
    """Stop the server. Its data stays and is there after the next start.

    \b
    Example:
      rsq server stop
    """
    embedded = _choose(context, directory)
    say(f"{'stopped' if embedded.stop() else 'was not running'}: {embedded.directory}")


@server.command()
@_directory
@json_option
@pass_context
def status(context: Context, directory: Path | None, as_json: bool) -> None:
    """Tell whether the server runs. Exit code 0: it runs; 3: it does not, or not yet.

    \b
    Example:
      rsq server status --json
    """
    found = _choose(context, directory).status()
    if as_json:
        document(asdict(found))
    elif found.running:
        say(f"running: {_line(found)}")
        for name, value in _details(found):
            say(f"  {name:<10} {value}")
    elif found.starting:
        say(f"starting, or not answering: {_line(found)}")
    else:
        say(f"not running: {found.directory}")
    sys.exit(0 if found.running else NOT_RUNNING)


def _choose(context: Context, directory: Path | None) -> EmbeddedServer:
    if directory is not None:
        return EmbeddedServer(directory)
    url = context.app_or_plain().settings.url
    if url.startswith("embedded:"):
        return from_url(url)
    if context.app_name or context.overrides:
        raise SettingsError("rsq server is about embedded servers, and the app has another one: say which by --dir")
    return from_url("embedded://")


def _line(found: Status) -> str:
    pid = f", pid {found.pid}" if found.pid else ""
    return f"{found.server or 'server'}{pid}, in {found.directory}"


def _details(found: Status) -> list[tuple[str, str]]:
    since = found.started_at_ms and datetime.fromtimestamp(found.started_at_ms / 1000).isoformat(" ", "seconds")
    sizes = [("data", found.data_bytes), ("memory", found.memory_bytes)]
    rows = [("program", found.binary), ("socket", found.socket), ("since", since), ("clients", found.clients)]
    rows += [(name, None if size is None else f"{size / 1e6:,.1f} MB") for name, size in sizes]
    return [(name, str(value)) for name, value in rows if value is not None]
