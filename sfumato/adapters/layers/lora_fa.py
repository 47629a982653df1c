"""LoRA-FA: a LoRA whose `down` stays as it was drawn (Zhang et al., arXiv:2308.03303).

Only `up` is trained: half the numbers, and no layer has to keep its input for the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from sfumato.adapters.layers import lora
from sfumato.adapters.layers.layer import AdapterLayer, Dropouts
from sfumato.adapters.layers.lora import Lora, LoraArguments, as_lora
from sfumato.models.interface.targets import AdapterTarget


def draw(layer: Lora) -> None:
    """Draw `down` from the global generator, normal with variance 2 / (inputs + rank)."""
    weight = layer.lora_down.weight
    nn.init.normal_(weight, std=math.sqrt(2 / (weight.shape[1] + weight.shape[0])))


def freeze(layer: Lora) -> None:
    """Make `down` a buffer: it is saved, loaded and moved like a parameter, but nobody can train it."""
    frozen = layer.lora_down.weight.detach()
    del layer.lora_down.weight
    layer.lora_down.register_buffer("weight", frozen)


def _make(target: AdapterTarget, arguments: LoraArguments, dropouts: Dropouts) -> Lora:
    layer = Lora(target, arguments.rank, arguments.alpha, dropouts)
    draw(layer)
    return layer


def _freeze(layer: AdapterLayer, arguments: LoraArguments) -> None:
    freeze(as_lora(layer))


KIND = replace(
    lora.KIND,
    name="lora_fa",
    title="LoRA-FA",
    description="a LoRA-FA",
    make=_make,
    refine=_freeze,
    has_plus=False,
    is_variant=True,
)
