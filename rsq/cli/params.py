"""What the command line takes: lengths of time, values as JSON, negative numbers, and flags of Celery's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from rsq.cli.out import say
from rsq.errors import LONGEST_S, SettingsError

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0, "w": 604_800.0}
_LENGTH = re.compile(rf"(.*?)\s*({'|'.join(_UNITS)})?", re.DOTALL)
_NUMBER = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE)


class Seconds(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A length of time: a number of seconds, or one with its unit."""

    name = "seconds"

    def __init__(self, least: float = 0.0) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """In seconds."""
        found = _LENGTH.fullmatch(str(value).strip())
        assert found is not None, "it takes whatever there is"
        try:
            seconds = float(found[1]) * _UNITS[found[2] or "s"]
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds):
            self.fail(f"{value!r} is no length of time: take seconds such as 30 or 0.5, or 500ms, 5m, 2h, 1d, 1w.")
        if seconds < self._least:
            self.fail(f"{value!r} is too short: take {self._least:g} s or more.")
        if seconds > LONGEST_S:
            self.fail(f"{value!r} is too long: take a hundred years at most.")
        return seconds


class TakesNumbers(click.Command):
    """A command whose `arguments` may be negative numbers, which click would take for options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        typed = args[: args.index("--")] if "--" in args else list(args)
        rest = super().parse_args(ctx, args)
        for each in ctx.params.get("arguments") or ():
            if each.startswith("-") and each in typed and not _NUMBER.fullmatch(each):
                raise click.NoSuchOption(
                    each, f"No such option: {each} (a text that begins with a dash goes behind --)", ctx=ctx
                )
        return rest


def value_of(text: str) -> Any:
    """A JSON value, or the text itself where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def mapping_of(text: str | None) -> dict[str, Any]:
    """The map that ``--kwargs`` gives. Raises SettingsError."""
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"--kwargs is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"--kwargs takes a JSON object such as '{{\"user_id\": 42}}', not {text}")
    return value


def needless(flags: Mapping[str, str]) -> Callable[[F], F]:
    """Options of Celery's that a command accepts and does without, each with one line about what to do here.

    flags  from the option's names, with commas and a = where it takes a value, to the line
    """

    def decorate(command: F) -> F:
        for declared, advice in flags.items():
            names, takes_value, _ = declared.partition("=")
            command = click.option(
                *names.split(","),
                is_flag=not takes_value,
                multiple=bool(takes_value),
                expose_value=False,
                hidden=True,
                callback=_tell(advice),
            )(command)
        return command

    return decorate


def _tell(advice: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def tell(ctx: click.Context, param: click.Parameter, value: Any) -> None:
        if value:
            say(f"rsq: {'/'.join(param.opts)} of Celery does nothing here: {advice}", err=True)

    return tell
