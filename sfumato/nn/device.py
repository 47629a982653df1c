"""Which device a run uses."""

from __future__ import annotations

import torch


def default_device() -> torch.device:
    """Return the fastest kind of device this machine has."""
    if torch.cuda.is_available():  # NVIDIA, and AMD through ROCm
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if torch.xpu.is_available():
        return torch.device("xpu")
    return torch.device("cpu")
