"""Adapter files change weights without a model, each as strongly as it is asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.weight_changes import Adapter, changed
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget


@pytest.mark.parametrize("kinds", [(Lora, Lora), (Loha, Loha), (Lora, Loha)])
def test_each_file_changes_a_weight_by_its_own_strength(kinds: tuple[Any, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = AdapterTarget("one", nn.Linear(6, 4, bias=False), DENOISER)
    weight, adapters = target.module.get_parameter("weight").detach(), []
    expected = weight.clone()
    for number, (kind, strength) in enumerate(zip(kinds, (0.5, -0.25), strict=True)):
        layer, path = kind(target, 2, 3.0), tmp_path / f"{number}.safetensors"
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        AdapterNetwork([layer]).save(path, None, {})
        adapters.append(Adapter.read(path, lambda _, strength=strength: strength))
        expected += strength * layer.delta().detach()
    found = changed(weight, target, adapters, torch.float32, torch.device("cpu"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
