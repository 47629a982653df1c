"""The processes of one run: who is first, who sums what."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from sfumato.config.run.distributed import DistributedConfig
from sfumato.errors import UserError
from sfumato.nn.device import HostCopy
from sfumato.transfer import to_device

logger = logging.getLogger(__name__)

Thing = TypeVar("Thing")

_LAST_WORDS_S = 5.0
"""How long a process that has lost another waits, so that the other can say first what happened."""


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
            _together(lambda: torch.distributed.all_reduce(tensor))

    def from_first(self, number: int) -> int:
        """Return the number that the first process gives."""
        if self.world == 1:
            return number
        told = torch.tensor(number, device=self.device)
        _together(lambda: torch.distributed.broadcast(told, src=0))
        return int(told)

    def of_others(self, things: list[Thing]) -> list[Thing]:
        """Return what the other processes give, which all of them must at the same time; for small things."""
        if self.world == 1:
            return []
        given: list[list[Thing]] = [[] for _ in range(self.world)]
        _together(lambda: torch.distributed.all_gather_object(given, things))
        return [thing for rank, theirs in enumerate(given) if rank != self.rank for thing in theirs]

    def wait(self) -> None:
        """Wait until every process is here."""
        _together(self.accelerator.wait_for_everyone)

    def finish(self) -> None:
        """Take the process group down, so that the launcher sees a clean exit."""
        if self.world > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


class LateVote:
    """What any process wanted, so that all of them do the same, at the same step.

    With several processes the answer is that of the call before: counting never waits for the device.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._counted: HostCopy | None = None

    def __call__(self, values: Sequence[bool]) -> list[bool]:
        """Vote on as many things as in every call; every process must, equally often."""
        if self._processes.world == 1:
            return list(values)
        votes = to_device(torch.tensor(values, dtype=torch.float32), self._processes.device)
        self._processes.sum_(votes)
        before, self._counted = self._counted, HostCopy(votes)
        return [False] * len(values) if before is None else [count > 0 for count in before.read().tolist()]


def start(config: DistributedConfig) -> Processes:
    """Join the process group that the launcher prepared, if any."""
    handlers = []
    if config.ddp_timeout:
        handlers.append(InitProcessGroupKwargs(timeout=timedelta(minutes=config.ddp_timeout)))
    # Autocast is ours (training/core/precision.py); accelerate finds devices and processes.
    processes = Processes(
        Accelerator(mixed_precision="no", cpu=not has_accelerator(), kwargs_handlers=handlers)
    )
    if line := missing_processes(processes.world, _launcher()):
        logger.warning(line)
    return processes


def missing_processes(world: int, launcher: Sequence[str]) -> str | None:
    """Return a line for the user if a launcher was asked for more processes than there are.

    `accelerate launch --num_processes 2` starts one, and says nothing, on a CPU or with a single card; its
    command line is the only place where the wish can be seen.

    Args:
        world: processes of this run.
        launcher: command line of the accelerate that started this process, or nothing.
    """
    words = [part for word in launcher for part in word.split("=", 1)]
    if "--num_processes" not in words[:-1]:
        return None
    asked = words[words.index("--num_processes") + 1]
    if not asked.isdigit() or int(asked) <= world:
        return None
    return (
        f"accelerate was asked for --num_processes {asked} and started {world}; "
        f"for {asked}, start the script with torchrun --nproc_per_node {asked}"
    )


def _launcher() -> list[str]:
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return []
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:  # it has ended, or belongs to somebody else
        return []


def _together(act: Callable[[], object]) -> None:
    """Do what all processes do together.

    Raises:
        UserError: one of them is gone.
    """
    try:
        act()
    except RuntimeError as error:
        logger.debug("a collective operation failed: %s", error)
        time.sleep(_LAST_WORDS_S)
        raise UserError("another process of this run has ended; what it said tells why") from error


@cache
def has_accelerator() -> bool:
    """Return whether there is anything but the processor to compute on."""
    xpu = getattr(torch, "xpu", None)
    return torch.cuda.is_available() or torch.backends.mps.is_available() or bool(xpu and xpu.is_available())
