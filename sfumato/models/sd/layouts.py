"""How checkpoints of Stable Diffusion 1 and 2 look."""

from __future__ import annotations

from sfumato.models.checkpoint import VAE_FORMAT, Layout, PartFormat
from sfumato.models.family import DENOISER, VAE

TEXT = "text_encoder"
SCALE = 0.18215

_UNET = PartFormat("a Stable Diffusion UNet", "model.diffusion_model.", "unet", "unet")
_PIPELINE = ("StableDiffusionPipeline", "DDIMScheduler")

SD1 = Layout(
    what="a Stable Diffusion 1 checkpoint",
    kind="sd1",
    unet_kinds=frozenset({"sd unet"}),
    parts={
        TEXT: PartFormat("a CLIP-L text encoder", "cond_stage_model.transformer.", TEXT, "clip"),
        DENOISER: _UNET,
        VAE: VAE_FORMAT,
    },
    keeps_unknown=True,
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
            "cond_stage_model.model.",
            TEXT,
            "openclip",
            activation="gelu",
            leaves_last=True,
        ),
        DENOISER: _UNET,
        VAE: VAE_FORMAT,
    },
    keeps_unknown=True,
    scale=SCALE,
    pipeline=_PIPELINE,
)
