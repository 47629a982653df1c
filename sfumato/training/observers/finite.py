"""A step whose loss or gradient is not finite ends the run before anything is spoiled."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from sfumato.checkpoints.finite import largest_on_device
from sfumato.errors import UserError
from sfumato.training.core.events import Saved
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Step
from sfumato.training.core.readings import Reading
from sfumato.transfer import to_host

_NOTHING_LEARNED = (
    "no step before it was finite, so the rate is not the reason: try another base model, "
    "bf16 instead of fp16,"
)

logger = logging.getLogger(__name__)


@dataclass
class FiniteGuard(Observer):
    """Stops the run when a step's loss or gradient was not finite; that step did not touch the weights.

    Attributes:
        skips: say so and go on instead.
        last_save: for messages.
        is_proven: whether a step of this run was finite.
        settle: waits for a save that is being written, so that it is known.
    """

    skips: bool = False
    last_save: str = "nothing was saved yet"
    is_proven: bool = False
    settle: Callable[[], None] = lambda: None

    def saved(self, event: Saved) -> None:
        """Note the last good save."""
        self.last_save = f"the last good save is {event.path}"

    def check_weights(self, step: Step, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Raise UserError rather than save weights that a step made infinite."""
        looked_at = {name: tensor for name, tensor in tensors if tensor.is_floating_point()}
        sizes = (largest_on_device(tensor) for tensor in looked_at.values())
        fetched = to_host((size, size.dtype) for size in sizes)
        for name, size in zip(looked_at, fetched, strict=True):
            if not size.isfinite():
                raise UserError(
                    f"step {step.number} left {name} infinite or not a number; lower --learning_rate "
                    f"({self.last_save})"
                )

    def read(self, reading: Reading) -> None:
        """Raise UserError for a step that was not finite."""
        if math.isfinite(reading.loss) and math.isfinite(reading.grad_norm):
            self.is_proven = True
            return
        what = f"step {reading.step.number}: loss {reading.loss}, gradient norm {reading.grad_norm}"
        files = ", ".join(reading.paths)
        if not self.skips:
            self.settle()
            remedy = "lower --learning_rate" if self.is_proven else _NOTHING_LEARNED
            raise UserError(f"{what}; {remedy} or look at that step's files: {files} ({self.last_save})")
        logger.warning("%s; the step is skipped, its files: %s", what, files)
