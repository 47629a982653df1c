"""The processes of one run: who is first, who sums what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from sfumato.config.distributed import DistributedConfig


@dataclass(frozen=True)
class Processes:
    """This process among its fellows, as accelerate, torchrun or plain Python started them."""

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        """This process's number; 0 saves, logs and reports."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """The number of processes."""
        return self.accelerator.num_processes

    @property
    def device(self) -> torch.device:
        """The device this process computes on."""
        return self.accelerator.device

    @property
    def is_first(self) -> bool:
        """Whether this is the process that saves, logs and reports."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all processes."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)

    def any(self, value: bool) -> bool:
        """Return whether `value` is true in any process, so that all of them do the same."""
        if self.world == 1:
            return value
        votes = torch.tensor(float(value), device=self.device)
        self.sum_(votes)
        return bool(votes)

    def wait(self) -> None:
        """Wait until every process is here."""
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """Take the process group down, so that the launcher sees a clean exit."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def start(config: DistributedConfig) -> Processes:
    """Join the process group that the launcher prepared, if any."""
    handlers = []
    if config.ddp_timeout:
        handlers.append(InitProcessGroupKwargs(timeout=timedelta(minutes=config.ddp_timeout)))
    # Autocast is ours (training/precision.py); accelerate finds devices and processes.
    return Processes(Accelerator(mixed_precision="no", cpu=not _has_accelerator(), kwargs_handlers=handlers))


def _has_accelerator() -> bool:
    xpu = getattr(torch, "xpu", None)
    return torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available())
