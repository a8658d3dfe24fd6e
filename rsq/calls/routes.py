"""Where calls go that name no queue, of tasks that name none: the app's routes, in the shapes that Celery takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from typing import Any, TypeAlias

from rsq import keys
from rsq.errors import SettingsError

Routes: TypeAlias = "Mapping[Any, Any] | Callable[..., Any] | Iterable[Any] | None"
"""``{"shop.mail.*": {"queue": "mail"}}``, a function, or a list of such; see `Router`."""


class Router:
    """The routes of an app, checked where they are written. The first one that answers decides.

    A map goes from patterns (``*``, ``?``, ``[ab]``, or a compiled regular expression) to ``{"queue": name}`` or just
    the name; of its patterns the first that fits the whole name of the task counts. A list may hold maps, pairs of
    pattern and queue, and functions. A function is called as ``route(name, args, kwargs, options, task=task)`` and
    gives a name, ``{"queue": name}``, or None, which leaves it to the next one.

    Raises  SettingsError
    """

    def __init__(self, routes: Routes) -> None:
        self._rules: list[Callable[..., Any] | tuple[re.Pattern[str], str]] = []
        self._known: dict[str, str | None] = {}
        self._add(routes)
        self._static = all(isinstance(rule, tuple) for rule in self._rules)

    def __bool__(self) -> bool:
        return bool(self._rules)

    @property
    def queues(self) -> list[str]:
        """The queues that stand in them; what functions give is not known."""
        return [rule[1] for rule in self._rules if isinstance(rule, tuple)]

    def queue_of(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task: object) -> str | None:
        """Where a call of this task goes, or None. Raises SettingsError for what a function gave."""
        if self._static and name in self._known:
            return self._known[name]
        queue = next(filter(None, (self._ask(rule, name, args, kwargs, task) for rule in self._rules)), None)
        if self._static:
            self._known[name] = queue
        return queue

    def said_of(self, name: str, default: str) -> str | None:
        """Where calls of this task go for all arguments; None where a function decides."""
        return (self.queue_of(name, (), {}, None) or default) if self._static else None

    def _ask(self, rule: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], task: object) -> str | None:
        if isinstance(rule, tuple):
            return str(rule[1]) if rule[0].fullmatch(name) else None
        answer = rule(name, args, kwargs, {}, task=task)
        return None if answer is None else _queue(answer, f"what {getattr(rule, '__name__', rule)}() gives for {name}")

    def _add(self, routes: Any) -> None:
        if routes is None:
            return
        if isinstance(routes, Mapping):
            for pattern, queue in routes.items():
                self._rules.append((_pattern(pattern), _queue(queue, f"the route of {_text(pattern)!r}")))
        elif callable(routes):
            self._rules.append(routes)
        elif isinstance(routes, (list, tuple)):
            for each in routes:
                is_pair = isinstance(each, (list, tuple)) and len(each) == 2 and isinstance(each[0], (str, re.Pattern))
                self._add({each[0]: each[1]} if is_pair else each)
        else:
            raise SettingsError(
                f"routes take a map such as {{'shop.mail.*': {{'queue': 'mail'}}}}, a function, or a list of these, "
                f"not {routes!r}"
            )


def _pattern(pattern: Any) -> re.Pattern[str]:
    if isinstance(pattern, re.Pattern):
        return pattern
    if not isinstance(pattern, str) or not pattern:
        raise SettingsError(f"a route begins with a pattern of task names, such as 'shop.mail.*', not {pattern!r}")
    return re.compile(translate(pattern))


def _text(pattern: Any) -> str:
    return str(getattr(pattern, "pattern", pattern))


def _queue(answer: Any, where: str) -> str:
    """The queue that a route names."""
    if isinstance(answer, Mapping):
        if other := [name for name in answer if name != "queue"]:
            raise SettingsError(f"{where}: a route names a queue and nothing else, not {other[0]!r}")
        answer = answer.get("queue")
    if not isinstance(answer, str):
        raise SettingsError(f"{where}: a route is a queue's name, or {{'queue': name}}, not {answer!r}")
    try:
        return keys.check_queue(answer)
    except SettingsError as error:
        raise SettingsError(f"{where}: {error}") from None
