"""Scaling adapter norms down leaves the weights and figures that sd-scripts leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sfumato.adapters.lora import Lora
from sfumato.adapters.network import AdapterNetwork
from sfumato.models.family import AdapterTarget
from tests.golden.derived import cases, rule, settings


def _layer(name: str, rank: int, alpha: float, shape: list[int]) -> Lora:
    if len(shape) == 2:
        module: nn.Module = nn.Linear(shape[1], shape[0], device="meta")
    else:
        module = nn.Conv2d(shape[1], shape[0], shape[2], device="meta")
    return Lora(AdapterTarget(name.removeprefix("lora_"), module, "denoiser"), rank, alpha)


@pytest.mark.parametrize("case", cases("max_norm"), ids=lambda case: case["id"])
def test_norms_are_limited_as_recorded(case: dict[str, Any]) -> None:
    recorded = settings("max_norm")
    network = AdapterNetwork([_layer(*layer) for layer in case["layers"]])
    state = network.state_dict()
    for key in (key for key in state if not key.endswith(".alpha")):
        state[key] = rule(recorded["key_prefix"] + key, tuple(state[key].shape)) * recorded["lora_weight_std"]
    network.load_state_dict(state)
    figures = [figure.item() for figure in network.limit_norms(case["limit"]).values()]
    assert figures == pytest.approx(case["result"], rel=1e-6)
    scaled = network.state_dict()[case["key"]].flatten()
    count = len(case["first"])
    torch.testing.assert_close(scaled[:count], torch.tensor(case["first"]), rtol=1e-6, atol=0)
    strided = scaled[:: max(1, len(scaled) // count)][:count]
    torch.testing.assert_close(strided, torch.tensor(case["strided"]), rtol=1e-6, atol=0)
    assert scaled.double().norm().item() == pytest.approx(case["stats"][3], rel=1e-6)
