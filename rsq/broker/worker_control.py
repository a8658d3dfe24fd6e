"""`app.control`: what people tell workers, with Celery's names. It stands in Redis; each act waits until it shows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rsq.broker.worker_inspect import Inspect
from rsq.broker.worker_wishes import Report, chosen, wait_for, wish
from rsq.errors import SettingsError
from rsq.hints import hinted

if TYPE_CHECKING:
    from rsq.broker.client import Client
    from rsq.broker.wire import Argument


@dataclass(frozen=True)
class Told:
    """What became of one worker.

    heard  it has answered
    done   its report shows the effect
    says   how it stands, in words
    """

    heard: bool
    done: bool
    says: str


@hinted("Control")
class Control:
    """Tells live workers what to do.

    destination  ids of workers; None = all
    timeout      seconds to wait until their reports show the effect. Who does not answer by then still hears of it, as
                 long as it lives
    Raises       SettingsError for a worker that does not live, or cannot do it: then nothing is told to any
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def inspect(self, destination: Collection[str] | None = None, timeout: float = 1.0, limit: int = 100) -> Inspect:
        """Questions to the workers; see `Inspect`."""
        return Inspect(self._client, destination, timeout, limit)

    def workers(self) -> list[str]:
        """Ids of the live workers."""
        return list(chosen(self._client, None))

    def revoke_by_stamped_headers(self, headers: Mapping[str, Any], terminate: bool = False) -> None:
        """Have calls not run that have one of these stamps, now and for a day; see `App.revoke` and `Signature.stamp`.

        It stands with the queues that are known now, and workers that come later hear of it, too.

        headers    stamps by name; a list means each of its values
        terminate  raise TaskRevoked in those that run
        Raises     SettingsError, EncodeError, BrokerError
        """
        self._client.revoke_stamped(headers, terminate)

    def shutdown(self, destination: Collection[str] | None = None, timeout: float = 5.0) -> dict[str, Told]:
        """Have workers stop as by SIGTERM: what has not begun goes to others, running tasks have their time to end."""
        wishes: dict[str, dict[str, Argument]] = {name: {"stop": 1} for name in chosen(self._client, destination)}

        def shows(name: str, report: Report | None) -> bool:
            return report is None or report.stopping

        return self._tell(wishes, timeout, shows, _stops)

    def pool_grow(
        self, n: int = 1, destination: Collection[str] | None = None, timeout: float = 5.0
    ) -> dict[str, Told]:
        """Give each worker `n` children more, within the room that it has. It lasts until the worker ends."""
        return self._resize(n, 1, destination, timeout)

    def pool_shrink(
        self, n: int = 1, destination: Collection[str] | None = None, timeout: float = 5.0
    ) -> dict[str, Told]:
        """Take `n` children from each worker; one is left at least. What runs in them ends in its own time."""
        return self._resize(n, -1, destination, timeout)

    def _resize(self, n: int, sign: int, destination: Collection[str] | None, timeout: float) -> dict[str, Told]:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise SettingsError(f"the number of children must be a whole number from 1, not {n!r}")
        targets = {name: _target(report, sign * n) for name, report in chosen(self._client, destination).items()}

        def shows(name: str, report: Report | None) -> bool:
            return report is not None and report.number("wanted") == report.working == targets[name]

        return self._tell({name: {"children": n} for name, n in targets.items()}, timeout, shows, _has)

    def _tell(
        self,
        wishes: dict[str, dict[str, Argument]],
        timeout_s: float,
        shows: Callable[[str, Report | None], bool],
        words: Callable[[Report | None], str],
    ) -> dict[str, Told]:
        serials = wish(self._client, wishes)
        reports, heard = wait_for(self._client, serials, timeout_s, shows)
        return {
            name: Told(True, shows(name, reports.get(name)), words(reports.get(name)))
            if name in heard
            else Told(False, False, _silent(reports[name], timeout_s))
            for name in serials
        }


def _target(report: Report, change: int) -> int:
    worker, wanted, most = report.worker, report.number("wanted"), report.number("most")
    if report.text("executor") == "solo":
        raise SettingsError(f"{worker} runs with -P solo, which has no children: start another worker beside it")
    if report.stopping:
        raise SettingsError(f"{worker} is stopping: name the others with --worker")
    if wanted + change > most:
        raise SettingsError(
            f"{worker} has room for {most} children, and {wanted} already: start another worker, or this one with a "
            "larger -c"
        )
    if wanted + change < 1:
        raise SettingsError(
            f"{worker} has {wanted} {'child' if wanted == 1 else 'children'}, and keeps one at least: rsq pause stops "
            "its queues, rsq control shutdown ends it"
        )
    return wanted + change


def _silent(report: Report, timeout_s: float) -> str:
    where = f"process {report.number('pid')} on {report.text('host')}"
    return f"no answer within {timeout_s:g} s: it will do it when it hears of it; if it hangs, kill {where}"


def _stops(report: Report | None) -> str:
    if report is None:
        return "has stopped"
    if not report.stopping:
        return "has heard it"
    running = len(report.detail["active"])
    if running == 0:
        return "stops"
    return f"stops; {running} {'task that runs has' if running == 1 else 'tasks that run have'} time to end"


def _has(report: Report | None) -> str:
    if report is None:
        return "has stopped"
    wanted, working, alive = report.number("wanted"), report.working, report.number("children")
    text = f"{wanted} {'child' if wanted == 1 else 'children'}"
    if working < wanted:
        return f"{text}, of which {wanted - working} {'is' if wanted - working == 1 else 'are'} still starting"
    if alive > wanted:
        return f"{text}, and {alive - wanted} that will end with what runs there"
    return text
