"""What the commands share: the app that the global options name, options of several commands, and words for people."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from rsq.app import BaseApp
from rsq.cli.out import say
from rsq.cli.params import Seconds
from rsq.loader import load_app

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.queue import Queue


@dataclass
class Context:
    """The global options. `app` is loaded when a command needs it."""

    app_name: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def app(self) -> BaseApp:
        """The app that -A or RSQ_APP names. Raises SettingsError."""
        app = load_app(self.app_name)
        app.configure(**self.overrides)
        return app

    def app_or_plain(self) -> BaseApp:
        """The app where one is named; else one without tasks, for commands that only look at the server."""
        if self.app_name or os.environ.get("RSQ_APP"):
            return self.app()
        return BaseApp("rsq", **self.overrides)


pass_context = click.make_pass_decorator(Context, ensure=True)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")

queue_option = click.option("-Q", "--queue", help="Queue; default: the app's default queue.")

worker_option = click.option(
    "--worker",
    "workers",
    metavar="ID",
    multiple=True,
    help="Only this one; may be repeated. Default: all that live.",
)

loglevel_option = click.option(
    "-l",
    "--loglevel",
    type=click.Choice(("debug", "info", "warning", "error"), case_sensitive=False),
    default="info",
    show_default=True,
    help="Log what is of this level, or above it.",
)


def queue_of(client: Client, name: str | None) -> Queue:
    """The queue of this name, wherever it lies; None means the default queue. Raises BrokerError."""
    return client.located([name or client.settings.default_queue])[0]


def timeout_option(default: float, what: str) -> Callable[[Any], Any]:
    """``--timeout`` of a command that waits."""
    return click.option(
        "--timeout", type=Seconds(), default=default, show_default=True, help=f"Seconds to wait {what}".strip() + "."
    )


def no_workers() -> None:
    """Say that there is nobody to ask."""
    say("no workers: start one with rsq -A your.module worker", err=True)


def ago(moment_ms: int | None) -> str:
    """How long ago that was, in words."""
    if moment_ms is None:
        return "-"
    seconds = max(0, int(time.time() - moment_ms / 1000))
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"


def local_time(moment_ms: int) -> str:
    """Date and time of this machine's zone."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment_ms / 1000))
    except (OverflowError, ValueError, OSError):
        return f"{moment_ms} ms"  # of no calendar: what the server holds may be anything


def shortened(text: object, width: int) -> str:
    """One line of at most `width` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= width else line[: width - 3] + "..."


def plural(number: int, noun: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
