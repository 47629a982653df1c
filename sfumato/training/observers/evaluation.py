"""Looking at a model in the midst of its training without disturbing it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from sfumato.adapters.network.network import Network


@contextmanager
def at_rest(network: Network | None) -> Iterator[None]:
    """Let adapters act at full strength and without dropout; give each module its mode back afterwards."""
    modes = [] if network is None else [(m, m.training) for m in network.trainable.modules()]
    if network is not None:
        network.trainable.eval()
        network.set_strength(1.0)  # training sets its own with every batch
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def same_random_numbers(device: torch.device) -> Iterator[None]:
    """Put every generator that a run may draw from back to where it was."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [] if device.type == "cpu" else [device]
    try:
        with torch.random.fork_rng(devices, device_type=device.type):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
