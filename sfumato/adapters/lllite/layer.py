"""What ControlNet-LLLite adds to the input of one layer, made of this input and of the control image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.nn.precision import compute_dtype

REDUCTIONS = {1: 8, 2: 16, 3: 32}
"""How many pixels of the control image are read as one, in each direction, by depth."""


@dataclass(frozen=True)
class LLLiteShape:
    """The sizes of one layer's network.

    Attributes:
        inputs: width of what the layer reads.
        depth: how often the UNet halved the latents before it, counted from 1 for not yet.
        embedding: channels of what is read off the control image.
        width: of the network.
    """

    inputs: int
    depth: int
    embedding: int
    width: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> LLLiteShape:
        """Read the sizes off a file's tensors, without the layer's name; raise KeyError if one is missing."""
        width, inputs = shapes["down.0.weight"]
        depth = 3 if "conditioning1.4.weight" in shapes else shapes["conditioning1.2.weight"][-1] // 2
        return cls(inputs, depth, shapes["mid.0.weight"][1] - width, width)


class LLLiteLayer(nn.Module):
    """The network of one layer. It adds nothing until it is trained.

    Args:
        dropout: probability, 0 to 1, that an element is dropped while gradients are computed.
    """

    def __init__(self, shape: LLLiteShape, dropout: float = 0.0) -> None:
        super().__init__()
        self.conditioning1 = _reader(shape.depth, shape.embedding)
        self.down = nn.Sequential(nn.Linear(shape.inputs, shape.width), nn.ReLU())
        self.mid = nn.Sequential(nn.Linear(shape.width + shape.embedding, shape.width), nn.ReLU())
        up = nn.Linear(shape.width, shape.inputs)
        nn.init.zeros_(up.weight)
        self.up = nn.Sequential(up)
        self.reduction = REDUCTIONS[shape.depth]
        self._dropout = dropout

    def read(self, image: Tensor) -> Tensor:
        """Return what is read off a control image, (B, H W / reduction^2, embedding).

        Args:
            image: (B, 3, H, W) in [-1, 1], with sides that are multiples of the reduction.
        """
        read = self.conditioning1(image.to(compute_dtype(self, image.device)))
        return read.flatten(2).transpose(1, 2)

    def forward(self, inputs: Tensor, read: Tensor) -> Tensor:
        """Return what is added to a layer's input, (B, L, inputs) like that; `read` is as above."""
        hidden = self.down(inputs.to(compute_dtype(self, inputs.device)))
        hidden = self.mid(torch.cat([read.to(hidden), hidden], dim=-1))
        hidden = functional.dropout(hidden, self._dropout, training=torch.is_grad_enabled())
        return self.up(hidden).to(inputs.dtype)


def _reader(depth: int, channels: int) -> nn.Sequential:
    """Return the convolutions that read the control image: one pixel for each position of the layer."""
    half = channels // 2
    last = nn.Conv2d(half, channels, 4 if depth == 2 else 2, stride=4 if depth == 2 else 2)
    between = [nn.ReLU(), nn.Conv2d(half, half, 4, stride=4)] if depth == 3 else []
    return nn.Sequential(nn.Conv2d(3, half, 4, stride=4), *between, nn.ReLU(), last)
