"""Change weights within the backward pass, so that few gradients exist at the same time.

As soon as the gradients of a share of the weights are complete, the optimizer steps that share and the
gradients are freed. A share is one weight, the weights of one block, or a part of all of them.

What is guaranteed where something is not finite: no such number enters a weight or the optimizer's memory.
From the first such gradient of a step on, all gradients of that step are taken as zero or, where such steps
are skipped, nothing more is changed. Weights whose gradients came before it have been changed by then; an
infinite loss is seen before any. The norm that is reported tells whoever reads it.
"""

from __future__ import annotations

from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from sfumato.training.core.distributed import Processes
from sfumato.training.core.plan import Step
from sfumato.training.core.scaling import Scaler
from sfumato.training.update.gradients import tame_
from sfumato.training.update.stepping import Stepping


class FusedUpdate:
    """Accumulate, and in a step's last backward pass: sum over processes, clip, step; a `WeightUpdate`.

    With several micro-batches in a process's step, gradients add up until the last one's backward pass.
    """

    scaler: Scaler | None = None

    def __init__(
        self,
        stepping: Stepping,
        processes: Processes,
        max_grad_norm: float,
        skips_nonfinite: bool = False,
    ) -> None:
        """Let the backward pass change weights from now on.

        Args:
            stepping: each of its optimizer's groups is a share.
            max_grad_norm: what each weight's own gradient is clipped to; 0 for no clipping.
            skips_nonfinite: the device is waited for at each weight.
        """
        self.stepping = stepping
        self.processes = processes
        self._max_grad_norm = max_grad_norm
        self._skips_nonfinite = skips_nonfinite
        self._shares: list[list[nn.Parameter]] = [g["params"] for g in stepping.optimizer.param_groups]
        self._owners = [index for index, share in enumerate(self._shares) for _ in share]
        self._parameters = list(chain(*self._shares))
        device = processes.device
        self._loss, self._squares = torch.zeros((), device=device), torch.zeros((), device=device)
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._arrived, index))

    def begin(self, step: Step) -> None:
        """Start a step."""
        self.stepping.begin(step.number)
        self._loss.zero_()
        self._squares.zero_()
        self._num_left = self._num_own = len(step.of_process(self.processes.rank, self.processes.world))
        self._is_short = len(step.micro_batches) < self.processes.world
        self._missing = [len(share) for share in self._shares]

    def accumulate(self, loss: Tensor) -> None:
        """Take in one micro-batch's share of the step's loss, 0-d; with the last one, change the weights."""
        self._loss += loss.detach()
        self._num_left -= 1
        if not self._num_left:
            self._sum_loss()
        loss.backward()

    def finish(self) -> Tensor:
        """Return (2,) float32 on the device: the step's loss and gradient norm."""
        if self._is_short:
            self._let_others_follow()
        late = [share for share, missing in enumerate(self._missing) if missing]
        late = [share for share in late if self.stepping.changes(share)]
        if late and not self._is_stopped():
            self.stepping.recall()
            for share in late:
                self._step(share)
        if not self._is_stopped():
            self.stepping.advance()
        return torch.stack([self._loss, self._squares.sqrt()])

    def _arrived(self, index: int, parameter: nn.Parameter) -> None:
        """Take in the gradient of a weight, which the backward pass has just completed."""
        if self._num_left:
            return
        if self._is_short:
            self._announce(index)
        gradient = parameter.grad
        assert gradient is not None
        self.processes.sum_(gradient)
        norm = torch.linalg.vector_norm(gradient, dtype=torch.float32)
        self._squares += norm.square().to(self._squares.device)
        if self._is_stopped():
            parameter.grad = None
            return
        # What is not finite once stays so within the step.
        tame_([gradient], norm + 0 * self._squares.to(norm.device), self._max_grad_norm)
        share = self._owners[index]
        self._missing[share] -= 1
        if not self._missing[share]:
            self._step(share)

    def _step(self, share: int) -> None:
        """Step a share and free its gradients; weights that the loss did not depend on have zeros."""
        for parameter in self._shares[share] if self._missing[share] else ():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.stepping.step_share(share)
        for parameter in self._shares[share]:
            parameter.grad = None

    def _is_stopped(self) -> bool:
        """Return whether nothing more is to be changed in this step."""
        return self._skips_nonfinite and not bool(self._squares.isfinite())

    def _sum_loss(self) -> None:
        self.processes.sum_(self._loss)
        self._squares += 0 * self._loss  # an infinite loss shows before any gradient is used

    def _let_others_follow(self) -> None:
        """End a step that has fewer micro-batches than there are processes.

        A process without one takes part in the sums: the first, which always has one, tells the order.
        """
        if self._num_own:
            self._announce(-1)
            return
        self._sum_loss()
        while (index := self._announce(-1)) >= 0:
            parameter = self._parameters[index]
            parameter.grad = torch.zeros_like(parameter)
            self._is_short = False  # it has been announced
            self._arrived(index, parameter)
            self._is_short = True

    def _announce(self, index: int) -> int:
        """Return the index that the first process says."""
        return self.processes.from_first(index)
