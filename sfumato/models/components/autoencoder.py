"""The autoencoder that all families share: diffusers' AutoencoderKL, from and to published files.

Published files come in two namings: the original one (`decoder.up.3.block.0.conv1`, whose levels count from
the finest, with 1x1 convolutions in the attention) and diffusers' (`decoder.up_blocks.0.resnets.0.conv1`,
with Linear layers there).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.lean_imports import lean
from sfumato.models.components.loading import check_names, fill, sizes_of
from sfumato.models.components.model_files import open_part
from sfumato.models.components.part_prefixes import VAE, prefix_in
from sfumato.models.components.tensor_views import TensorView, view_of
from sfumato.nn.precision import compute_dtype
from sfumato.transfer import to_device

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

Shapes = Mapping[str, tuple[int, ...]]

_PUBLISHED_GROUPS = 32
_LOG_VARIANCE = (-30.0, 20.0)
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0", "norm": "group_norm"}
_RENAMES = (
    (r"\.mid\.block_(\d)\.", lambda match, _: f".mid_block.resnets.{int(match[1]) - 1}."),
    (r"\.mid\.attn_1\.(\w+)\.", lambda match, _: f".mid_block.attentions.0.{_ATTENTION[match[1]]}."),
    (r"\.down\.(\d+)\.block\.", lambda match, _: f".down_blocks.{match[1]}.resnets."),
    (r"\.down\.(\d+)\.downsample\.", lambda match, _: f".down_blocks.{match[1]}.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", lambda match, top: f".up_blocks.{top - int(match[1])}.resnets."),
    (r"\.up\.(\d+)\.upsample\.", lambda match, top: f".up_blocks.{top - int(match[1])}.upsamplers.0."),
    (r"\.nin_shortcut\.", lambda _match, _top: ".conv_shortcut."),
    (r"\.norm_out\.", lambda _match, _top: ".conv_norm_out."),
    (
        r"\.mid_block\.attentions\.0\.(query|key|value|proj_attn)\.",
        lambda match, _: f".mid_block.attentions.0.{_OLDER[match[1]]}.",
    ),
)
_OLDER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What early versions of diffusers called the attention's layers."""
_OWN = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_FLATTENED = re.compile(r"\.mid_block\.attentions\.0\.to_.*weight$")


@dataclass(frozen=True)
class AutoencoderShape:
    """Every size that tells one autoencoder from another.

    Attributes:
        channels: of the latents.
        widths: channels of each level, finest first; each level but the first halves the image.
        resnets: residual blocks of each level of the encoder.
    """

    channels: int
    widths: tuple[int, ...]
    resnets: int
    has_quant_convs: bool

    @property
    def downscale(self) -> int:
        """Image pixels per latent pixel side."""
        return 2 ** (len(self.widths) - 1)

    @classmethod
    def of(cls, shapes: Shapes) -> AutoencoderShape:
        """Read the sizes off a file's tensors, in either naming."""
        shapes = {new: shapes[old] for old, new in diffusers_names(shapes).items()}
        convolution = "encoder.down_blocks.{}.resnets.{}.conv1.weight"
        levels = takewhile(shapes.__contains__, (convolution.format(level, 0) for level in count()))
        resnets = takewhile(shapes.__contains__, (convolution.format(0, number) for number in count()))
        return cls(
            channels=shapes["decoder.conv_in.weight"][1],
            widths=tuple(shapes[name][0] for name in levels),
            resnets=len(list(resnets)),
            has_quant_convs="quant_conv.weight" in shapes,
        )


def told_shape(shapes: Shapes) -> AutoencoderShape | None:
    """Return the sizes of a file's autoencoder; None where its tensors are none's."""
    try:
        return AutoencoderShape.of(shapes)
    except (KeyError, IndexError):
        return None


def diffusers_names(names: Shapes) -> dict[str, str]:
    """Return diffusers' name for each name of a file; names that are diffusers' already stay."""
    levels = [int(match[1]) for name in names if (match := re.match(r"decoder\.up\.(\d+)\.", name))]
    return {name: _renamed(name, max(levels, default=0)) for name in names}


def load(
    path: Path,
    dtype: torch.dtype,
    device: torch.device,
    *,
    use_mmap: bool = True,
    what: str = "an autoencoder",
) -> AutoencoderKL:
    """Load an autoencoder from a file or folder in either naming, frozen and in eval mode.

    The file may hold all parts of a model.

    Args:
        use_mmap: as `open_tensors` has it.
        what: the model that is expected, for messages.
    """
    with open_part(path, VAE, use_mmap=use_mmap) as file:
        return load_view(view_of(file), dtype, device, what=what)


def load_view(
    view: TensorView, dtype: torch.dtype | None, device: torch.device, *, what: str = "an autoencoder"
) -> AutoencoderKL:
    """Load an autoencoder from tensors in either naming, frozen and in eval mode; `dtype` as in `fill`."""
    sources = {new: old for old, new in diffusers_names(view.shapes).items()}
    vae = sizes_of(view.path, what, lambda: build(AutoencoderShape.of(view.shapes)))
    check_names(view.path, what, set(vae.state_dict()), sources)
    fill(vae, view.path, lambda name: _flattened(name, view.get(sources[name])), dtype, device)
    return vae


def own_tensors(view: TensorView) -> TensorView:
    """Return the autoencoder in a file, which may be a whole checkpoint or hold leftovers of training."""
    view = view.below(prefix_in(view.shapes, VAE))
    return view.renamed({name: name for name in view.shapes if name.startswith(_OWN)})


def encode(vae: nn.Module, pixels: Tensor, rng: torch.Generator | None, *, is_clamped: bool = True) -> Tensor:
    """Return unscaled latents (B, C, H/8, W/8) float32 of pixels (B, 3, H, W) in [-1, 1].

    Args:
        rng: draws the sample from the encoder's posterior; None takes its mean.
        is_clamped: whether the posterior's variance is kept within bounds, as diffusers does.
    """
    dtype = compute_dtype(vae, pixels.device)
    moments = cast(Any, vae).encode(pixels.to(dtype)).latent_dist.parameters.float()
    mean, log_variance = moments.chunk(2, dim=1)
    if rng is None:
        return mean
    noise = to_device(torch.randn(mean.shape, generator=rng, device=rng.device), mean.device)
    if is_clamped:
        log_variance = log_variance.clamp(*_LOG_VARIANCE)
    return mean + torch.exp(0.5 * log_variance) * noise


def decode(vae: nn.Module, latents: Tensor) -> Tensor:
    """Return pixels (B, 3, H, W) in about [-1, 1] of unscaled latents (B, C, H/8, W/8)."""
    return cast(Any, vae).decode(latents.to(compute_dtype(vae, latents.device))).sample


def use_tiles(vae: nn.Module) -> None:
    """Let large images be encoded and decoded in tiles that overlap, with less memory."""
    cast(Any, vae).enable_tiling()


def build(shape: AutoencoderShape) -> AutoencoderKL:
    """Return an autoencoder on the meta device, without numbers."""
    with lean():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(shape.widths)
    per_level: dict[str, Any] = {  # typed upstream as if there were always one level
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": shape.widths,
    }
    with torch.device("meta"):
        return AutoencoderKL(
            **per_level,
            layers_per_block=shape.resnets,
            latent_channels=shape.channels,
            norm_num_groups=math.gcd(_PUBLISHED_GROUPS, *shape.widths),
            use_quant_conv=shape.has_quant_convs,
            use_post_quant_conv=shape.has_quant_convs,
        )


def as_diffusers(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return a file's tensors, in either naming, as the module has them."""
    names = diffusers_names({name: tensor.shape for name, tensor in tensors.items()})
    return {new: tensors[old].changed(partial(_flattened, new)) for old, new in names.items()}


def published(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Return diffusers' tensors under the original names, the attention as 1x1 convolutions."""
    levels = [int(match[1]) for name in tensors if (match := re.match(r"decoder\.up_blocks\.(\d+)\.", name))]
    top = max(levels)
    return {
        _original(name, top): value.changed(_as_convolution) if _FLATTENED.search(name) else value
        for name, value in tensors.items()
    }


def _renamed(name: str, top: int) -> str:
    for pattern, replace in _RENAMES:
        name = re.sub(pattern, lambda match, replace=replace: replace(match, top), name, count=1)
    return name


def _original(name: str, top: int) -> str:
    attention = {new: old for old, new in _ATTENTION.items()}
    rules = (
        (r"\.mid_block\.resnets\.(\d)\.", lambda match: f".mid.block_{int(match[1]) + 1}."),
        (
            r"\.mid_block\.attentions\.0\.(to_out\.0|\w+)\.",
            lambda match: f".mid.attn_1.{attention[match[1]]}.",
        ),
        (r"\.down_blocks\.(\d+)\.resnets\.", r".down.\1.block."),
        (r"\.down_blocks\.(\d+)\.downsamplers\.0\.", r".down.\1.downsample."),
        (r"\.up_blocks\.(\d+)\.resnets\.", lambda match: f".up.{top - int(match[1])}.block."),
        (r"\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda match: f".up.{top - int(match[1])}.upsample."),
        (r"\.conv_shortcut\.", ".nin_shortcut."),
        (r"\.conv_norm_out\.", ".norm_out."),
    )
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name, count=1)
    return name


def _as_convolution(weight: Tensor) -> Tensor:
    return weight[..., None, None]


def _flattened(name: str, value: Tensor) -> Tensor:
    """Drop the 1x1 window of an attention weight that was stored as a convolution."""
    return value.flatten(1) if _FLATTENED.search(name) and value.dim() > 1 else value
