"""The ControlNet of Stable Diffusion 1, 2 and XL: diffusers' network, made of a UNet, loaded, asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sfumato.lean_imports import lean
from sfumato.models.components.controlnet.controlnet_names import ADDED, diffusers_names
from sfumato.models.components.loading import check_names, fill, sizes_of
from sfumato.models.components.tensor_views import Shapes, TensorView
from sfumato.models.components.unet import residuals, unet, unet_names
from sfumato.models.components.unet.attention import Processor
from sfumato.models.components.unet.unet import UnetShape
from sfumato.nn.precision import compute_dtype, linear_weights

if TYPE_CHECKING:
    from diffusers.models.controlnets.controlnet import ControlNetModel

WHAT = "a ControlNet"

_HINT_WIDTHS = (16, 32, 96, 256)
"""Channels of the layers that read the control image."""


def shape_of(shapes: Shapes) -> UnetShape:
    """Read a ControlNet's sizes off a file's tensors, in either naming; raise KeyError if one is missing.

    It has no output like a UNet's, which counts as many channels as it takes.
    """
    own = {new: shapes[old] for old, new in diffusers_names(shapes).items()}
    return UnetShape.of({**own, "conv_out.weight": own["conv_in.weight"][1:]})


def build(shape: UnetShape, num_heads: tuple[int, ...] | None = None) -> ControlNetModel:
    """Return the ControlNet for a UNet of these sizes on the meta device, without numbers."""
    with lean():
        from diffusers.models.controlnets.controlnet import ControlNetModel

    with torch.device("meta"):
        model = ControlNetModel(
            conditioning_embedding_out_channels=_HINT_WIDTHS, **unet.first_half(shape, num_heads)
        )
    model.set_attn_processor(cast(Any, Processor()))
    return model


def load(
    view: TensorView,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    num_heads: tuple[int, ...] | None = None,
) -> ControlNetModel:
    """Load a ControlNet from tensors in either naming, frozen and in eval mode.

    Args:
        dtype: as `loading.fill` has it.
        num_heads: attention heads of each level; None takes those of the published models.
    """
    own = view.renamed({new: old for old, new in diffusers_names(view.shapes).items()})
    model = sizes_of(view.path, WHAT, lambda: build(shape_of(own.shapes), num_heads))
    check_names(view.path, WHAT, set(model.state_dict()), own.shapes)
    return _filled(model, view.path, own.get, dtype, device)


def begin(
    view: TensorView,
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    num_heads: tuple[int, ...] | None = None,
) -> ControlNetModel:
    """Make a ControlNet that changes nothing yet: a UNet's first half, and layers of zeros behind it.

    The layers that read the control image are drawn from torch's generator.

    Args:
        view: the UNet's tensors, in either naming.
        dtype, num_heads: as `load` has them.
    """
    own = view.renamed({new: old for old, new in unet_names.diffusers_names(view.shapes).items()})
    model = sizes_of(view.path, "a UNet", lambda: build(UnetShape.of(own.shapes), num_heads))
    added = _first_numbers(model)
    return _filled(
        model, view.path, lambda name: added[name] if name in added else own.get(name), dtype, device
    )


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the residual blocks and transformer blocks in execution order."""
    return unet.blocks_to_middle(model)


def added_weights(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that the UNet has not."""
    return frozenset(name for name, _ in model.named_parameters() if name.startswith(ADDED))


def predict(
    model: nn.Module,
    image: Tensor,
    noisy: Tensor,
    timesteps: Tensor,
    context: Tensor,
    told: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return what a ControlNet adds inside the UNet, by name; see `residuals`.

    Args:
        image: (B, 3, H, W) in [-1, 1]; the network itself reads [0, 1].
        noisy, timesteps, context, told: as `unet.predict` has them.
    """
    dtype = compute_dtype(model, noisy.device)
    down, middle = model(
        noisy.to(dtype),
        timesteps,
        encoder_hidden_states=context.to(dtype),
        controlnet_cond=((image + 1) / 2).to(dtype),
        added_cond_kwargs=None if told is None else {name: t.to(dtype) for name, t in told.items()},
        return_dict=False,
    )
    return residuals.named(down, middle)


def _filled(
    model: ControlNetModel,
    path: Path,
    get: Callable[[str], Tensor],
    dtype: torch.dtype | None,
    device: torch.device,
) -> ControlNetModel:
    fill(model, path, get, dtype, device, linear_weights(model))
    return model


def _first_numbers(model: ControlNetModel) -> dict[str, Tensor]:
    """Return the weights that the UNet has not, as they are before training."""
    with lean():
        from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding

    state = model.state_dict()
    reader = ControlNetConditioningEmbedding(state["conv_in.weight"].shape[0], 3, _HINT_WIDTHS)
    drawn = {f"{ADDED}cond_embedding.{name}": tensor for name, tensor in reader.state_dict().items()}
    zeros = {name: torch.zeros(state[name].shape) for name in added_weights(model)}
    return zeros | drawn
