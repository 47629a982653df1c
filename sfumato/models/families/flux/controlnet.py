"""The ControlNet of FLUX.1, as XLabs and sd-scripts have it: a few of its double blocks, and layers of zeros.

It reads the pixels of the control image, eight to one and then two by two as latents are packed, and adds to
the image tokens behind each of FLUX's double blocks: what its own two blocks make, in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.errors import UserError
from sfumato.models.components.controlnet.control_kinds import OPTION, XLABS
from sfumato.models.components.dit.transformer_file import OpenTransformer
from sfumato.models.components.loading import check_names, fill, sizes_of
from sfumato.models.components.model_files import open_weights
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.tensor_views import view_of
from sfumato.models.families.flux.network import (
    DoubleStreamBlock,
    Flux,
    FluxShape,
    MLPEmbedder,
    modulating_vector,
    rotation,
    text_mask,
)
from sfumato.models.families.flux.packing import pack
from sfumato.nn.precision import linear_weights

WHAT = "a ControlNet for FLUX.1"

_NAME = "residual{}"
_TIME_WIDTH, _HINT_WIDTH, _DEPTH = 256, 16, 2
_STRIDES = (1, 1, 2, 1, 2, 1, 2, 1)
"""Of the layers that read the control image."""


class FluxControlNet(nn.Module):
    """Make of a control image, and of what FLUX.1 is asked, what is added behind its double blocks.

    Args:
        shape: FLUX's, with as many double blocks as the ControlNet has.
    """

    def __init__(self, shape: FluxShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.hidden_size
        self.img_in = nn.Linear(shape.in_channels, width)
        self.time_in = MLPEmbedder(_TIME_WIDTH, width)
        self.vector_in = MLPEmbedder(shape.pooled_width, width)
        if shape.guidance:
            self.guidance_in = MLPEmbedder(_TIME_WIDTH, width)
        self.txt_in = nn.Linear(shape.text_width, width)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(shape) for _ in range(shape.depth))
        self.controlnet_blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(shape.depth))
        self.pos_embed_input = nn.Linear(shape.in_channels, width)
        self.input_hint_block = _reader(shape.in_channels // 4)

    def forward(
        self,
        image: Tensor,
        img: Tensor,
        img_ids: Tensor,
        txt: Tensor,
        txt_ids: Tensor,
        timesteps: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
        txt_attention_mask: Tensor | None = None,
    ) -> list[Tensor]:
        """Return what each block adds to the image tokens, (B, L, C).

        Args:
            image: (B, 3, H, W) in [-1, 1].
            img, img_ids, txt, txt_ids, timesteps, y, guidance, txt_attention_mask: as `Flux` has them.
        """
        vec = modulating_vector(self, timesteps, y, guidance, img.dtype)
        turn = rotation(torch.cat((txt_ids, img_ids), dim=1), self.shape.axes_dim, self.shape.theta)
        mask = text_mask(txt_attention_mask, img.shape[1])
        img = self.img_in(img) + self.pos_embed_input(pack(self.input_hint_block(image.to(img.dtype))))
        txt, added = self.txt_in(txt), []
        for block, last in zip(self.double_blocks, self.controlnet_blocks, strict=True):
            img, txt = block(img, txt, vec, turn, mask)
            added.append(last(img))
        return added


def named(added: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return a ControlNet's outputs as entries of `Conditioning.control`."""
    return {_NAME.format(number): tensor for number, tensor in enumerate(added)}


def residuals(control: Mapping[str, Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return what `named` put into the control, in order; nothing where there is none."""
    return [
        control[name].to(dtype) for number in range(len(control)) if (name := _NAME.format(number)) in control
    ]


def begin(base: OpenTransformer[Flux], dtype: torch.dtype, device: torch.device) -> FluxControlNet:
    """Make a ControlNet that changes nothing yet, of FLUX's first blocks.

    The layers that read the control image are drawn from torch's generator.

    Args:
        base: FLUX's file.
    """
    shape = base.model.shape
    with torch.device("meta"):
        model = FluxControlNet(replace(shape, depth=min(_DEPTH, shape.depth), depth_single=0))
    added = _first_numbers(model)

    def get(name: str) -> Tensor:
        return added[name] if name in added else base.tensors[name].load()

    fill(model, Path(WHAT), get, dtype, device, linear_weights(model))
    return model


def load(path: Path, base: FluxShape, dtype: torch.dtype, device: torch.device) -> FluxControlNet:
    """Load a ControlNet from its file, frozen and in eval mode.

    Args:
        base: FLUX's sizes, which it has to fit.

    Raises:
        UserError: it is no such ControlNet, or one for a model of another size.
    """
    if not path.exists():
        raise UserError(f"--{OPTION} is {path}, which does not exist; give {WHAT}")
    with open_weights(path) as file:
        view = view_of(file)
        kind = recognise(view.shapes)
        if kind is None or kind.name != XLABS:
            told = describe(view.shapes)
            raise UserError(f"--{OPTION} is {path}: {told}; give {WHAT} as XLabs has it")
        shape = sizes_of(path, WHAT, lambda: FluxShape.of(view.shapes))
        if replace(shape, depth=base.depth, depth_single=base.depth_single, guidance=base.guidance) != base:
            raise UserError(f"--{OPTION} is {path}, a ControlNet for a model of another size; give another")
        with torch.device("meta"):
            model = FluxControlNet(shape)
        check_names(path, WHAT, set(model.state_dict()), view.shapes)
        fill(model, path, view.get, dtype, device, linear_weights(model))
    return model


def added_weights(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that FLUX has not."""
    own = ("controlnet_blocks.", "pos_embed_input.", "input_hint_block.")
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(own))


def _reader(channels: int) -> nn.Sequential:
    """Return the convolutions that read the control image, for latents of so many channels."""
    widths = (3, *(_HINT_WIDTH for _ in _STRIDES[1:]), channels)
    layers: list[nn.Module] = []
    for taken, made, stride in zip(widths, widths[1:], _STRIDES, strict=False):
        layers += [nn.Conv2d(taken, made, 3, stride=stride, padding=1), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def _first_numbers(model: FluxControlNet) -> dict[str, Tensor]:
    """Return the weights that FLUX has not, as they are before training."""
    reader, shape = _reader(model.shape.in_channels // 4), model.shape
    for parameter in reader[-1].parameters():
        nn.init.zeros_(parameter)
    drawn = nn.ModuleDict(
        {"pos_embed_input": nn.Linear(shape.in_channels, shape.hidden_size), "input_hint_block": reader}
    )
    weights = dict(model.named_parameters())
    zeros = {name: torch.zeros(weights[name].shape) for name in added_weights(model)}
    return zeros | drawn.state_dict()
