"""A family of two text encoders and a denoiser, small enough to count its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget

WIDTH = 8


class Block(nn.Module):
    """A fused projection and a way back."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(3 * WIDTH, WIDTH)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.out(self.qkv(inputs).tanh())


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.img_in = nn.Linear(WIDTH, WIDTH)
        self.doubles = nn.ModuleList(Block() for _ in range(2))
        self.singles = nn.ModuleList(Block() for _ in range(3))

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = self.img_in(inputs)
        for block in (*self.doubles, *self.singles):
            inputs = block(inputs)
        return inputs


class ToyFamily:
    """As much of a family as adapters ask for."""

    text_outputs: Mapping[str, tuple[str, ...]] = {"first": ("a",), "second": ("b",)}

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        if part != DENOISER:
            number = list(self.text_outputs).index(part) + 1
            yield AdapterTarget(f"te{number}_fc", model.get_submodule("0"), part, "fc", ("layer", 0))
            return
        for kind in ("double", "single"):
            for i, block in enumerate(model.get_submodule(f"{kind}s").children()):
                names = {"double": ("img_attn", "img_mlp"), "single": ("single", "single_mod")}[kind]
                for name, layer_kind in zip(("qkv", "out"), names, strict=True):
                    layer = block.get_submodule(name)
                    splits = (WIDTH,) * 3 if name == "qkv" else ()
                    yield AdapterTarget(f"unet_{kind}_{i}_{name}", layer, part, layer_kind, (kind, i), splits)
        yield AdapterTarget("unet_img_in", model.get_submodule("img_in"), part, "img_in", is_default=False)


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    texts = {part: nn.Sequential(nn.Linear(WIDTH, WIDTH)) for part in ToyFamily.text_outputs}
    return {**texts, DENOISER: Denoiser()}


def all_targets(parts: Mapping[str, nn.Module]) -> list[AdapterTarget]:
    return [target for part, model in parts.items() for target in ToyFamily().adapter_targets(part, model)]
