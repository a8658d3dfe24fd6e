"""A beat as a process: loads the app, and beats until a signal, or until the worker that keeps it says so."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Mapping

from rsq.app import BaseApp
from rsq.beat.beat import AGAIN_S, Beat
from rsq.errors import BrokerUnavailable, RsqError
from rsq.loader import load_app
from rsq.worker.process import EXIT_CANNOT_BEGIN, EXIT_ORPHANED, heed_no_group_signals
from rsq.worker.stop import Lifeline, StopSignals, SupervisorGone

log = logging.getLogger("rsq.beat")


def run_beat(load: Callable[[], BaseApp], announce: Callable[[str], None]) -> int:
    """Beat until SIGTERM, SIGINT or SIGHUP; gives the exit code. A second signal ends it at once.

    load  gives the app: signals are heard before it is imported
    A server that is away is waited for, at the start too.
    Raises SettingsError and BrokerError for what does not mend itself.
    """
    with StopSignals(alone=True) as signals:
        app = load()
        signals.hold()

        def wait(seconds: float) -> bool:
            if not signals.wait(seconds):
                return False
            log.info("%s: stopping", signals.why)
            return True

        _beat(app, announce, wait)
    return 0


def _beat(app: BaseApp, announce: Callable[[str], None], wait: Callable[[float], bool]) -> None:
    """From begin to end. `wait` is given seconds, and answers whether to stop."""
    beat = Beat(app)
    while not wait(0.0):
        try:
            announce(beat.begin())
        except BrokerUnavailable as error:
            log.warning("%s; trying again in %.1f s", error, AGAIN_S)
            if wait(AGAIN_S):
                return
        else:
            beat.run(wait)
            return


def run_beat_beside(
    go: int, app_name: str | None, overrides: Mapping[str, object], announce: Callable[[str], None]
) -> int:
    """The whole life of the beat of `rsq worker -B`, a process beside the children; gives its exit code.

    go  descriptor of its `Lifeline`
    """
    signals = StopSignals(signal.SIGTERM, alone=True)
    lifeline = Lifeline(go, signals)
    try:
        app = load_app(app_name)
        app.configure(**dict(overrides))
        signals.hold()
        heed_no_group_signals()
        _beat(app, announce, lambda seconds: bool(lifeline.hear(seconds)))
    except SupervisorGone:
        return EXIT_ORPHANED
    except RsqError as error:
        log.error("the beat cannot begin: %s", error)
        return EXIT_CANNOT_BEGIN
    return 0
