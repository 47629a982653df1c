"""One optimizer step: from the losses of its micro-batches to changed weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from sfumato.training.distributed import Processes
from sfumato.training.gradients import FlatGradients


@dataclass
class Update:
    """Accumulate, sum over processes, clip, step.

    Attributes:
        scheduler: None for optimizers that need none.
        scaler: None unless gradients are float16.
        max_grad_norm: 0 for no clipping.
    """

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    processes: Processes
    max_grad_norm: float
    scaler: torch.amp.GradScaler | None = None

    def __post_init__(self) -> None:
        parameters: list[nn.Parameter] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.gradients = FlatGradients(parameters)
        self._loss = torch.zeros((), device=parameters[0].device)

    def begin(self) -> None:
        """Start a step."""
        self.gradients.zero()
        self._loss.zero_()

    def accumulate(self, loss: Tensor) -> None:
        """Add one micro-batch's share of the step's loss, 0-d, and its gradients."""
        self._loss += loss.detach()
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def finish(self) -> Tensor:
        """Change the weights; return (2,) float32 on the device: the step's loss and gradient norm.

        Gradients that are not finite are taken as zero; whoever reads the norm stops the run.
        """
        self.gradients.sum_over(self.processes.sum_)
        self.processes.sum_(self._loss)
        if self.scaler:
            return self._finish_scaled(self.scaler)
        norm = self.gradients.norm()
        self.gradients.tame_(norm, self.max_grad_norm)
        self.optimizer.step()
        self._advance()
        return torch.stack([self._loss, norm])

    def _finish_scaled(self, scaler: torch.amp.GradScaler) -> Tensor:
        """Step as float16 asks: an overflow lowers the scale and skips the step, which is no failure."""
        scaler.unscale_(self.optimizer)
        norm = self.gradients.norm()
        self.gradients.tame_(norm, self.max_grad_norm)
        scaler.step(self.optimizer)
        scaler.update()
        self._advance()
        return torch.stack([self._loss, torch.nan_to_num(norm, posinf=0.0)])

    def _advance(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()

    def rates(self) -> list[float]:
        """Return each group's effective rate; optimizers that find it themselves scale theirs by `d`."""
        return [
            float(group.get("scheduled_lr", group["lr"]) or 0.0) * float(group.get("d", 1.0))
            for group in self.optimizer.param_groups
        ]
