"""How a run trades time for memory, and memory for time: what is done to the blocks of its models.

Which blocks wait in RAM, and whether blocks can be compiled, is found before any weight is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import nn

from sfumato.adapters.sd_scripts import argument_values
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.nn import checkpointing, compilation, offload
from sfumato.nn.copy_stream import carrier_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Swap:
    """The blocks of a denoiser that travel.

    Attributes:
        indices: their positions among `family.blocks(DENOISER, model)`, ascending.
    """

    family: Family
    indices: tuple[int, ...]
    _placed: list[offload.BlockSwap] = field(default_factory=list)

    def place(
        self,
        model: nn.Module,
        device: torch.device,
        after_backward: Callable[[nn.Module], None] | None = None,
    ) -> offload.BlockSwap:
        """Let these blocks of a model in RAM travel, and bring everything else to the device.

        Args:
            after_backward: as `BlockSwap` has it.
        """
        blocks = self.family.blocks(DENOISER, model)
        chosen = [blocks[index] for index in self.indices]
        offload.move_others(model, chosen, device)
        swap = offload.BlockSwap(chosen, carrier_for(device), after_backward)
        logger.info(
            "%d of %d blocks, %.2f GB, wait in RAM; they take turns in %.2f GB on the device",
            *(len(chosen), len(blocks), swap.num_bytes / 1e9, swap.slot_bytes / 1e9),
        )
        self._placed.append(swap)
        return swap

    def recall(self) -> None:
        """Let all weights that travel be where others can read and change them."""
        for swap in self._placed:
            swap.recall()


def prepare_blocks(config: MemoryConfig, blocks: Sequence[nn.Module]) -> None:
    """Let a denoiser's blocks, or a trained text encoder's, be computed as the options say."""
    if config.torch_compile:
        compilation.enable(blocks, config.dynamo_backend)
    if config.gradient_checkpointing:
        checkpointing.enable(blocks, offload=config.cpu_offload_checkpointing)


def plan(
    memory: MemoryConfig, family: Family, device: torch.device, network_args: Sequence[str] = ()
) -> Swap | None:
    """Return what is swapped in a run with these options, or None.

    Raises:
        UserError: the model has fewer blocks, or compiling them is asked for and not possible here.
    """
    if memory.torch_compile:
        compilation.check(memory.dynamo_backend, device)
    if not (memory.blocks_to_swap or memory.split_mode):
        return None
    model = family.load(DENOISER, torch.bfloat16, torch.device("meta"))
    blocks = family.blocks(DENOISER, model)
    if memory.blocks_to_swap:
        return Swap(family, _chosen(blocks, memory.blocks_to_swap))
    kind = argument_values.split(network_args)["train_blocks"]
    return Swap(family, tuple(range(_num_in_front(kind, family, model, blocks))))


def _chosen(blocks: list[nn.Module], num: int) -> tuple[int, ...]:
    sizes = [offload.size_of(block) for block in blocks]
    most = offload.most_swapped(sizes)
    if most < 1:
        raise UserError(f"--blocks_to_swap is {num}; this model has too few blocks for it, so leave it out")
    if num > most:
        raise UserError(
            f"--blocks_to_swap is {num}; with this model, whose small blocks count less, use {most} or less"
        )
    return tuple(offload.choose(sizes, num))


def _num_in_front(kind: str, family: Family, model: nn.Module, blocks: list[nn.Module]) -> int:
    """Return how many blocks run before the first of that kind, which is trained."""
    targets = family.adapter_targets(DENOISER, model)
    trained = {target.module for target in targets if target.block and target.block[0] == kind}
    return len(list(takewhile(lambda block: trained.isdisjoint(block.modules()), blocks)))
