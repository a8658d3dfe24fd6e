"""`rsq schedule`: look at schedules and change them at run time."""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta

import click

from rsq.beat.control import ScheduleInfo, Schedules
from rsq.calls.schedules import Scheduled, crontab, schedule_of
from rsq.cli.common import Context, json_option, local_time, pass_context
from rsq.cli.out import document, say, table
from rsq.cli.params import Seconds, TakesNumbers, mapping_of, value_of
from rsq.errors import SettingsError


@click.group()
def schedule() -> None:
    """Schedules: calls that a beat sends again and again.

    \b
    Example:
      rsq schedule list
      rsq schedule add nightly shop.tasks.report --cron "0 3 * * *" --tz Europe/Paris
    """


@schedule.command("list")
@json_option
@pass_context
def list_(context: Context, as_json: bool) -> None:
    """List schedules, with their next and last run and how that ended. Times are of this machine's zone.

    \b
    Example:
      rsq schedule list
      rsq schedule list --json | jq '.[] | select(.outcome == "FAILURE")'
    """
    found, unreadable = context.app_or_plain().part(Schedules).look()
    for problem in unreadable.values():
        say(f"rsq: {problem}", err=True)
    if as_json:
        document([asdict(each) for each in found])
        return
    if not found:
        say("no schedules: declare them in code and start rsq beat, or see rsq schedule add --help")
        return
    table(
        ("NAME", "SCHEDULE", "TASK", "QUEUE", "FROM", "NEXT", "LAST", "OUTCOME"),
        [
            (
                each.name,
                each.schedule,
                each.task,
                each.queue,
                f"code of {each.origin}" if each.origin else "run time",
                _next(each),
                "-" if each.last_ms is None else local_time(each.last_ms),
                each.outcome or "-",
            )
            for each in found
        ],
    )


def _next(each: ScheduleInfo) -> str:
    if each.paused:
        return "paused"
    return "-" if each.next_ms is None else local_time(each.next_ms)


@schedule.command(cls=TakesNumbers)
@click.argument("name")
@click.argument("task")
@click.argument("arguments", nargs=-1)
@click.option("--cron", help='Cron expression, such as "0 3 * * 1".')
@click.option("--tz", help="Time zone of the expression, such as Europe/Paris; default: the setting timezone.")
@click.option("--every", type=Seconds(), help="Interval in place of --cron: 30, 30s, 5m, 2h, 1d or 1w.")
@click.option("-Q", "--queue", help="Queue; default: the task's.")
@click.option("--kwargs", metavar="JSON", help="Keyword arguments as a JSON object.")
@click.option("--priority", type=click.IntRange(0, 9), help="0 to 9, 9 is the most urgent.")
@click.option("--expires", type=Seconds(), help="Drop a call that has not started so long after its slot.")
@click.option(
    "--catchup",
    type=click.Choice(["latest", "none", "all"]),
    default="latest",
    show_default=True,
    help="What becomes of slots that no beat could fire in time.",
)
@click.option(
    "--catchup-limit",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="How many of them 'all' fires at most.",
)
@pass_context
def add(
    context: Context,
    name: str,
    task: str,
    arguments: tuple[str, ...],
    cron: str | None,
    tz: str | None,
    every: float | None,
    queue: str | None,
    kwargs: str | None,
    priority: int | None,
    expires: float | None,
    catchup: str,
    catchup_limit: int,
) -> None:
    """Add the schedule NAME, which calls TASK with ARGUMENTS: JSON values, or plain text where they are none.

    The same name again changes it. A beat that runs sees it within a second.

    \b
    Example:
      rsq schedule add ping shop.tasks.ping --every 30s
      rsq -A shop.tasks schedule add nightly shop.tasks.report 7 --cron "0 3 * * *" --tz Europe/Paris
    """
    app = context.app_or_plain()
    if app.tasks:
        app.get_task(task)
    app.part(Schedules).add(
        name,
        _when(cron, tz, every),
        task,
        [value_of(text) for text in arguments],
        mapping_of(kwargs),
        catchup=catchup,
        catchup_limit=catchup_limit,
        queue=queue,
        priority=priority,
        expires=expires,
    )
    say(f"added schedule {name}")


@schedule.command()
@click.argument("name")
@pass_context
def remove(context: Context, name: str) -> None:
    """Remove a schedule that was added at run time. One of the code goes when it is removed there.

    \b
    Example:
      rsq schedule remove nightly
    """
    context.app_or_plain().part(Schedules).remove(name)
    say(f"removed schedule {name}")


@schedule.command()
@click.argument("name")
@pass_context
def pause(context: Context, name: str) -> None:
    """Fire no slot of NAME until it is resumed. It holds for all beats, and through restarts and deploys.

    \b
    Example:
      rsq schedule pause nightly
    """
    context.app_or_plain().part(Schedules).pause(name)
    say(f"paused schedule {name}")


@schedule.command()
@click.argument("name")
@pass_context
def resume(context: Context, name: str) -> None:
    """Go on with the next slot of NAME. Those of the pause are not made up for.

    \b
    Example:
      rsq schedule resume nightly
    """
    context.app_or_plain().part(Schedules).resume(name)
    say(f"resumed schedule {name}")


@schedule.command()
@click.argument("name")
@json_option
@pass_context
def trigger(context: Context, name: str, as_json: bool) -> None:
    """Send one call of NAME now, paused or not, and print its id. Its slots go on as they were.

    \b
    Example:
      rsq schedule trigger nightly
    """
    sent = context.app_or_plain().part(Schedules).trigger(name)
    if as_json:
        document({"id": sent.id, "queue": sent.queue, "duplicate": sent.duplicate})
    else:
        say(f"{sent.id}{' (sent before)' if sent.duplicate else ''}")


def _when(cron: str | None, tz: str | None, every: float | None) -> Scheduled:
    if (cron is None) == (every is None):
        raise SettingsError("give one of --cron and --every")
    if cron is not None:
        return crontab(cron, tz=tz)
    if tz is not None:
        raise SettingsError("--tz goes with --cron: an interval is the same everywhere")
    assert every is not None
    return schedule_of(timedelta(seconds=every))
