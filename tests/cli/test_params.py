"""What the command line takes: lengths of time, negative numbers, and flags of Celery's."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from rsq.cli import beat, worker
from rsq.cli.main import main
from rsq.cli.params import Seconds, TakesNumbers
from rsq.errors import LONGEST_S


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 30),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("5m", 300),
        ("2 h", 7200),
        ("1d", 86_400),
        (" 1w ", 604_800),
        ("1e3", 1000),
        (str(LONGEST_S), LONGEST_S),
    ],
)
def test_a_length_of_time(text: str, seconds: float) -> None:
    assert Seconds().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-inf", "-1", "", "s", "5 years", "1e999", "99999999999999999w", "9" * 5000]
)
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Seconds().convert(text, None, None)


def test_each_time_of_the_command_line_is_of_that_type() -> None:
    def options(command: click.Command) -> list[click.Parameter]:
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        return [*command.params, *(param for each in inner for param in options(each))]

    times = [param for param in options(main) if isinstance(param.type, Seconds)]
    assert {str(param.name) for param in times} == {
        *("timeout", "countdown", "every", "expires", "lease", "shutdown_timeout")
    }
    assert not [param for param in options(main) if isinstance(param.type, (click.types.FloatParamType))]


@click.command(cls=TakesNumbers)
@click.argument("task")
@click.argument("arguments", nargs=-1)
@click.option("-Q", "--queue")
def send(task: str, arguments: tuple[str, ...], queue: str | None) -> None:
    click.echo(f"{task} {list(arguments)} {queue}")


@pytest.mark.parametrize(
    ("typed", "printed"),
    [
        (["t", "-5", "-1.5e-3", "-.5", "-Q", "-q"], "t ['-5', '-1.5e-3', '-.5'] -q\n"),
        (["-Q", "q", "t", "--", "--text", "-5"], "t ['--text', '-5'] q\n"),
    ],
)
def test_negative_numbers_are_arguments(typed: list[str], printed: str) -> None:
    done = CliRunner().invoke(send, typed)
    assert (done.exit_code, done.output) == (0, printed)


@pytest.mark.parametrize("typed", ["--quite", "-x", "-5x", "--5"])
def test_an_option_that_there_is_not(typed: str) -> None:
    done = CliRunner().invoke(send, ["t", typed])
    assert done.exit_code == 2
    assert f"No such option: {typed}" in done.output
    assert "goes behind --" in done.output


@pytest.mark.parametrize(
    ("command", "typed"),
    [
        *(("worker", [*flag.split()]) for flag in ("-n w1@%h", "-E", "-O fair", "-Ofair", "--without-gossip")),
        *(("worker", [*flag.split()]) for flag in ("--without-mingle", "--without-heartbeat", "--autoscale=10,3")),
        *(("worker", [*flag.split()]) for flag in ("--prefetch-multiplier 1", "--time-limit 3", "--soft-time-limit 3")),
        *(("worker", [*flag.split()]) for flag in ("--logfile x", "--pidfile x", "-f x", "--statedb x")),
        *(
            ("beat", [*flag.split()])
            for flag in ("-S django", "--scheduler x:Y", "--pidfile x", "--schedule x", "-s x")
        ),
    ],
)
def test_flags_of_celery_are_taken_with_one_line(command: str, typed: list[str]) -> None:
    done = CliRunner().invoke(main, [command, *typed], env={"RSQ_APP": ""})
    told, missing = done.output.splitlines()
    assert told.startswith("rsq: -")
    assert "of Celery does nothing here: " in told
    assert missing.startswith("rsq: no app given")


def test_flags_of_celery_are_not_advertised() -> None:
    for module, name in ((worker, "worker"), (beat, "beat")):
        help_text = CliRunner().invoke(main, [name, "--help"]).output
        for declared in module._CELERYS:
            longest = max(declared.rstrip("=").split(","), key=len)
            assert longest not in help_text.split()
