"""How far the training of a part of the toy base has come, kept so that an interrupted run goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn


def save(state_file: Path, step: int, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Write everything that `resume` needs."""
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"step": step, "model": model.state_dict(), "optimizers": states}, state_file)


def resume(state_file: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load what `save` wrote, if there is anything; return the step to go on from."""
    if not state_file.exists():
        return 0
    state = torch.load(state_file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]
