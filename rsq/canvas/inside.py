"""What a running task does to the canvas in which it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from rsq.calls.message import Delivery
from rsq.calls.request import current
from rsq.canvas.signature import Signature, check_signature
from rsq.errors import Replace, SettingsError
from rsq.home import Home
from rsq.result import AsyncResult


class Inside:
    """The part of a task that is for its own body."""

    if TYPE_CHECKING:
        app: Home

    def replace(self, sig: Signature[Any]) -> NoReturn:
        """Have another call, or a whole canvas, take the place of the running one; never returns.

        What comes out of it is the result of this call, under its id; of a group that is the list. What waits for this
        call waits for it: the next steps of the chain, the body of the chord, links and errbacks. It starts in the step
        that settles this call; if that is lost, nothing of it starts.

        Raises  Replace, which ends the body; SettingsError, and what starting it would raise
        """
        delivery = _running("self.replace")
        if hasattr(delivery, "added"):
            raise SettingsError(
                f"{delivery.task}[{delivery.id}] has added calls to its batch or chord, which go with its success, and "
                "cannot replace itself then: have it add a call that does so"
            )
        raise Replace(self.app.flows.stand_in(check_signature(sig, "self.replace"), delivery))

    def add_to_chord(self, sig: Signature[Any]) -> AsyncResult[Any]:
        """Add a member to the chord of which the running call is one: a call, or a whole canvas. Gives its handle.

        The body waits for it, too, and gets its value at the end of the list. It goes with the success of this call: a
        run that fails adds nothing.

        Raises  SettingsError: this call is in the header of no chord; FlowGone; what starting it would raise
        """
        delivery = _running("self.add_to_chord")
        handle: AsyncResult[Any] = self.app.flows.add_beside(check_signature(sig, "self.add_to_chord"), delivery)
        return handle


def _running(what: str) -> Delivery:
    """The call that runs. Raises SettingsError."""
    delivery = current.get()
    if delivery is None:
        raise SettingsError(
            f"{what}() is about the call that runs, and none does: the function was called directly; call it by "
            "apply() or delay()"
        )
    return delivery
