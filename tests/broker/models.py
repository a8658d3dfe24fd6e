"""Runs of models, hypothesis' state machines, beside the scripts.

RSQ_TEST_MODEL_EXAMPLES=2000 (default 60) makes them look longer, RSQ_TEST_MODEL_STEPS=200 (default 50) further.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from rsq.broker.client import Client
from rsq.calls.outcome import Buried, Completed
from tests.broker.conftest import Rig
from tests.broker.flowing import Flowing

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


class OfFlows(RuleBasedStateMachine):
    """What models of flows have in common: scripts are repeated, and what follows is left to later ones.

    restless  something new happens before all has followed from what was before
    came      what was released, as the model names it, in order
    commits   what has ended together
    """

    restless: bool
    came: list[Any]

    def __init__(self, rig: Rig, client: Client) -> None:
        super().__init__()
        self.flowing = Flowing(rig, client)
        self.commits: list[list[Completed | Buried]] = []

    def named(self, task_id: str) -> Any:
        """The call with this id, as the model names it."""
        return task_id

    def settle(self) -> None:
        if not self.restless:
            self.flowing.go_on()
        self.came += map(self.named, self.flowing.fetch())

    @precondition(lambda self: self.commits)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """The reply was lost."""
        self.flowing.end(*data.draw(st.sampled_from(self.commits)))
        self.settle()

    @rule()
    def go_on(self) -> None:
        self.flowing.rig.link.run_one(self.flowing.rig.queue.go_on_call())
        self.settle()


def keep_flows_to(machine: Callable[[Rig, Client], Any], rig: Rig) -> None:
    """`keep_to` for flows. A failure is told as it was found: to make it small would take too long."""
    client = Client(rig.queue.settings)
    try:
        keep_to(lambda: machine(rig, client), phases=[Phase.explicit, Phase.reuse, Phase.generate])
    finally:
        client.close()
        rig.redis.flushall()
