"""How checkpoints of Stable Diffusion 1 and 2 look."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfumato.config import json_text
from sfumato.errors import UserError
from sfumato.models.components import part_prefixes
from sfumato.models.components.stable_diffusion.checkpoint import VAE_FORMAT, Layout, PartFormat
from sfumato.models.components.tensor_views import Shapes
from sfumato.models.interface.family import DENOISER, VAE

TEXT = "text_encoder"
SCALE = 0.18215

_UNET = PartFormat("a Stable Diffusion UNet", part_prefixes.DENOISER, "unet", "unet")
_UNET_2 = replace(_UNET, is_linear=True)
_PIPELINE = ("StableDiffusionPipeline", "DDIMScheduler")

SD1 = Layout(
    what="a Stable Diffusion 1 checkpoint",
    kind="sd1",
    unet_kinds=frozenset({"sd unet"}),
    parts={
        TEXT: PartFormat("a CLIP-L text encoder", ("cond_stage_model.transformer.",), TEXT, "clip"),
        DENOISER: _UNET,
        VAE: VAE_FORMAT,
    },
    scale=SCALE,
    pipeline=_PIPELINE,
)
SD2 = Layout(
    what="a Stable Diffusion 2 checkpoint",
    kind="sd2",
    unet_kinds=frozenset({"sd unet"}),
    parts={
        TEXT: PartFormat(
            "the text encoder of Stable Diffusion 2",
            ("cond_stage_model.model.",),
            TEXT,
            "openclip",
            activation="gelu",
            leaves_last=True,
        ),
        DENOISER: _UNET_2,
        VAE: VAE_FORMAT,
    },
    scale=SCALE,
    pipeline=_PIPELINE,
    is_told_by_weights=True,
)


def is_version_2(folder: Path, shapes: Shapes) -> bool:
    """Tell Stable Diffusion 2 from 1 by a folder in diffusers' layout.

    Version 2 is published with Linear layers around its UNet's transformers. Some programs write them as 1x1
    convolutions, but its text encoder has another activation than version 1's.

    Args:
        shapes: of the UNet's tensors.
    """
    if any(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".proj_in.weight")):
        return True
    settings = folder / TEXT / "config.json"
    try:
        return json_text.read_object(settings).get("hidden_act") == "gelu"
    except UserError:  # missing or damaged, which is reported when it is loaded
        return False
