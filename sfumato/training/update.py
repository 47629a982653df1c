"""One optimizer step: from the losses of its micro-batches to changed weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from sfumato.training.distributed import Processes
from sfumato.training.flat import FlatParameter
from sfumato.training.gradients import FlatGradients
from sfumato.training.progress import Rate
from sfumato.training.scaling import Scaler


@dataclass
class Update:
    """Accumulate, sum over processes, clip, step.

    Attributes:
        scheduler: None for optimizers that need none.
        scaler: None unless gradients are float16.
        max_grad_norm: 0 for no clipping.
        skips_nonfinite: whether a step whose gradients are not finite changes nothing at all. Each step then
            waits for the device.
        flat: those of the optimizer's parameters that are many of the model's.
    """

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    processes: Processes
    max_grad_norm: float
    scaler: Scaler | None = None
    skips_nonfinite: bool = False
    flat: Sequence[FlatParameter] = ()

    def __post_init__(self) -> None:
        self.gradients = FlatGradients(self._parameters)
        for joined in self.flat:
            joined.share_gradient()
        self._loss = torch.zeros((), device=self._parameters[0].device)
        if train := getattr(self.optimizer, "train", None):
            train()

    def begin(self) -> None:
        """Start a step."""
        for joined in self.flat:
            joined.check()
        self.gradients.zero()
        self._loss.zero_()

    def accumulate(self, loss: Tensor) -> None:
        """Add one micro-batch's share of the step's loss, 0-d, and its gradients."""
        self._loss += loss.detach()
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def finish(self) -> Tensor:
        """Change the weights; return (2,) float32 on the device: the step's loss and gradient norm.

        Gradients that are not finite are taken as zero or skipped; whoever reads the norm deals with it.
        """
        self.gradients.sum_over(self.processes.sum_)
        self.processes.sum_(self._loss)
        if self.scaler:
            return self._finish_scaled(self.scaler)
        norm = self.gradients.norm()
        self.gradients.tame_(norm, self.max_grad_norm)
        if not self.skips_nonfinite or bool(norm.isfinite()):
            self.optimizer.step()
        self._advance()
        return torch.stack([self._loss, norm])

    def _finish_scaled(self, scaler: Scaler) -> Tensor:
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

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the weights be those to use, not those to train, for the duration of a `with` block.

        They differ for schedule-free optimizers alone: gradients are taken at y, between the fast sequence
        and the average x that is the result (Defazio et al. 2024, equations 3 to 5).
        """
        evaluate, train = (getattr(self.optimizer, name, None) for name in ("eval", "train"))
        if evaluate is None or train is None:
            yield
            return
        # Going to x and back rounds, so that the run would depend on when it saves: y is kept instead.
        kept = [parameter.detach().to("cpu", copy=True) for parameter in self._parameters]
        evaluate()
        try:
            yield
        finally:
            train()
            for parameter, before in zip(self._parameters, kept, strict=True):
                parameter.detach().copy_(before)

    @property
    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def rates(self) -> list[Rate]:
        """Return each group's learning rate."""
        return [
            Rate(
                float(group.get("scheduled_lr", group["lr"]) or 0.0),
                float(group["d"]) if "d" in group else None,
            )
            for group in self.optimizer.param_groups
        ]
