"""Runs of models, hypothesis' state machines, beside the scripts.

RSQ_TEST_MODEL_EXAMPLES=2000 (default 60) makes them look longer, RSQ_TEST_MODEL_STEPS=200 (default 50) further.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from rsq.broker.client import Client
from tests.broker.conftest import Rig

EXAMPLES = int(os.environ.get("RSQ_TEST_MODEL_EXAMPLES", "60"))
STEPS = int(os.environ.get("RSQ_TEST_MODEL_STEPS", "50"))


def keep_to(machine: Callable[[], Any], **more: Any) -> None:
    """The scripts come to what the model says, in whatever order it is asked.

    machine  makes a model
    more     settings of hypothesis
    """
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # whatever makes one will do
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=[*HealthCheck],
            **more,
        ),
    )


def keep_flows_to(machine: Callable[[Rig, Client], Any], rig: Rig) -> None:
    """`keep_to` for flows. A failure is told as it was found: to make it small would take too long."""
    client = Client(rig.queue.settings)
    try:
        keep_to(lambda: machine(rig, client), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    finally:
        client.close()
        rig.redis.flushall()
