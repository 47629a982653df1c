"""The default device is one that works."""

import torch

from sfumato.nn.device import default_device


def test_the_default_device_computes() -> None:
    device = default_device()
    assert (torch.ones(2, device=device) + 1).sum().item() == 4
    assert device.type == "cuda" or not torch.cuda.is_available()
