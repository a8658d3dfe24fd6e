"""The command `rsq`: global options, the groups of commands, and the one place where errors become a line."""

from __future__ import annotations

from typing import Any

import click

from rsq import __version__
from rsq.cli.beat import beat
from rsq.cli.bench import bench
from rsq.cli.calls import call, result
from rsq.cli.common import Context
from rsq.cli.control import control, revoke
from rsq.cli.dead import dead
from rsq.cli.demo import demo
from rsq.cli.events import events
from rsq.cli.flow import flow
from rsq.cli.health import health
from rsq.cli.inspect import inspect
from rsq.cli.out import EXIT_BROKER, ending, fail, interrupted, prepare
from rsq.cli.partitions import partitions
from rsq.cli.queues import pause, purge, resume, status
from rsq.cli.schedule import schedule
from rsq.cli.server import server
from rsq.cli.worker import worker
from rsq.errors import BrokerError, RsqError


class _Group(click.Group):
    """Turns rsq's errors into one line and an exit code: no traceback for a user's mistake or an unreachable server."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        prepare()
        with ending():
            try:
                code = super().main(*args, **{**kwargs, "standalone_mode": False})
            except click.UsageError as error:
                if type(error).__name__ == "NoArgsIsHelpError":  # click has it from 8.2 on
                    error.show()
                    raise SystemExit(error.exit_code) from None
                fail(_what_is_wrong(error))
            except click.ClickException as error:
                fail(error.format_message(), code=error.exit_code)
            except click.Abort:
                interrupted()
            raise SystemExit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokerError as error:
            fail(error, code=EXIT_BROKER)
        except RsqError as error:
            fail(error)
        except KeyboardInterrupt:
            interrupted()


def _what_is_wrong(error: click.UsageError) -> str:
    """In one line, with what to do next."""
    text, context = " ".join(error.format_message().split()), error.ctx
    if context is None:
        return text
    program = context.find_root().command_path
    command = context.command_path.removeprefix(program).strip()
    named = error.option_name if isinstance(error, click.NoSuchOption) else ""
    if command and any(named in option.opts for option in main.params if option.expose_value):
        return f"{named} goes before the command: {program} {named} ... {command}"
    return f"{text} (see {context.command_path} --help)"


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rsq")
@click.option("-A", "--app", "app_name", metavar="MODULE[:ATTRIBUTE]", help="Where your app is; default: RSQ_APP.")
@click.option("--url", help="Server; default: the app's, then RSQ_URL, then the embedded server.")
@click.option("--namespace", help="First part of every key; default: the app's, then 'rsq'.")
@click.pass_context
def main(ctx: click.Context, app_name: str | None, url: str | None, namespace: str | None) -> None:
    """A task queue on Redis Streams: nothing lost, nothing counted twice.

    \b
    Example:
      rsq -A shop.tasks worker -Q default
      rsq -A shop.tasks call shop.tasks.add 1 2 --wait

    Exit codes: 0 done, 1 the command's own "no", 2 a mistake in the call or the settings, 3 no result yet, 4 the
    server, 130 Ctrl-C.
    """
    given = {"url": url, "namespace": namespace}
    ctx.obj = Context(app_name, {name: value for name, value in given.items() if value is not None})


for command in (
    worker,
    beat,
    schedule,
    call,
    result,
    status,
    pause,
    resume,
    revoke,
    inspect,
    control,
    purge,
    partitions,
    dead,
    events,
    flow,
    health,
    server,
    demo,
    bench,
):
    main.add_command(command)
