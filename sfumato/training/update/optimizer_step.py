"""One optimizer step: from the losses of its micro-batches to changed weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from sfumato.training.core.distributed import Processes
from sfumato.training.core.plan import Step
from sfumato.training.core.scaling import Scaler
from sfumato.training.update.flat import FlatParameter
from sfumato.training.update.gradients import FlatGradients
from sfumato.training.update.stepping import Group, Stepping


class WeightUpdate(Protocol):
    """What the loop asks of whoever changes the weights.

    Attributes:
        scaler: None unless gradients are float16.
    """

    stepping: Stepping
    processes: Processes
    scaler: Scaler | None

    def begin(self, step: Step) -> None:
        """Start a step."""
        ...

    def accumulate(self, loss: Tensor) -> None:
        """Add one micro-batch's share of the step's loss, 0-d, and its gradients."""
        ...

    def finish(self) -> Tensor:
        """Change what is left to change; return (2,) float32 on the device: the loss and gradient norm."""
        ...


@dataclass
class Update:
    """Accumulate, sum over processes, clip, step; a `WeightUpdate`.

    Attributes:
        scaler: None unless gradients are float16.
        max_grad_norm: 0 for no clipping.
        skips_nonfinite: whether a step whose gradients are not finite changes nothing at all. Each step then
            waits for the device.
        flat: those of the optimizer's parameters that are many of the model's.
    """

    stepping: Stepping
    processes: Processes
    max_grad_norm: float
    scaler: Scaler | None = None
    skips_nonfinite: bool = False
    flat: Sequence[FlatParameter] = ()

    def __post_init__(self) -> None:
        parameters = self.stepping.parameters
        self.gradients = FlatGradients(parameters)
        for joined in self.flat:
            joined.share_gradient()
        self._loss = torch.zeros((), device=parameters[0].device)
        self._noting = _Noting(self.stepping)

    def begin(self, step: Step) -> None:
        """Start a step."""
        for joined in self.flat:
            joined.check()
        self.stepping.begin(step.number)
        self.gradients.zero()
        self._loss.zero_()

    def accumulate(self, loss: Tensor) -> None:
        """Add one micro-batch's share of the step's loss, 0-d, and its gradients."""
        self._loss += loss.detach()
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def finish(self) -> Tensor:
        """Change the weights; return (2,) float32 on the device: the step's loss and gradient norm.

        Gradients that are not finite are taken as zero or skipped; whoever reads the norm deals with it. A
        step that is skipped does not count in the schedule.
        """
        self.gradients.sum_over(self.processes.sum_)
        self.processes.sum_(self._loss)
        if self.scaler:
            return self._finish_scaled(self.scaler)
        norm = self.gradients.norm()
        self.gradients.tame_(norm, self.max_grad_norm)
        if not self.skips_nonfinite or bool(norm.isfinite()):
            self.stepping.step()
            self.stepping.advance()
        return torch.stack([self._loss, norm])

    def _finish_scaled(self, scaler: Scaler) -> Tensor:
        """Step as float16 asks: an overflow lowers the scale and skips the step, which is no failure.

        The schedule then waits, as it does under accelerate. To know that, each step waits for the device.
        """
        optimizer = cast(torch.optim.Optimizer, self._noting)
        scaler.unscale_(optimizer)
        norm = self.gradients.norm()
        self.gradients.tame_(norm, self.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        if self._noting.has_stepped():
            self.stepping.advance()
        return torch.stack([self._loss, torch.nan_to_num(norm, posinf=0.0)])


class _Noting:
    """An optimizer as a scaler sees it: scalers do not say whether they stepped."""

    def __init__(self, stepping: Stepping) -> None:
        self._stepping = stepping
        self._has_stepped = False

    @property
    def param_groups(self) -> list[Group]:
        return self._stepping.optimizer.param_groups

    def step(self) -> None:
        self._stepping.step()
        self._has_stepped = True

    def has_stepped(self) -> bool:
        """Return whether it stepped since this was last asked."""
        stepped, self._has_stepped = self._has_stepped, False
        return stepped
