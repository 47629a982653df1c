"""How checkpoints of SDXL look."""

from __future__ import annotations

from sfumato.models.components import part_prefixes
from sfumato.models.components.stable_diffusion.checkpoint import VAE_FORMAT, Layout, PartFormat
from sfumato.models.interface.family import DENOISER, VAE

TEXT_1, TEXT_2 = "text_encoder1", "text_encoder2"
SCALE = 0.13025

SDXL = Layout(
    what="an SDXL checkpoint",
    kind="sdxl",
    unet_kinds=frozenset({"sdxl unet"}),
    parts={
        TEXT_1: PartFormat(
            "a CLIP-L text encoder", ("conditioner.embedders.0.transformer.",), "text_encoder", "clip"
        ),
        TEXT_2: PartFormat(
            "a CLIP-G text encoder",
            ("conditioner.embedders.1.model.",),
            "text_encoder_2",
            "openclip",
            activation="gelu",
            has_projection=True,
        ),
        DENOISER: PartFormat("an SDXL UNet", part_prefixes.DENOISER, "unet", "unet"),
        VAE: VAE_FORMAT,
    },
    scale=SCALE,
    pipeline=("StableDiffusionXLPipeline", "EulerDiscreteScheduler"),
    has_published_controls=False,
)
