"""What files put before the names of a part's tensors.

A part may have a file of its own, with or without a prefix, or lie in a file with all parts, where the prefix
tells whose a tensor is. Each program has its own prefixes.
"""

from __future__ import annotations

from collections.abc import Iterable

DENOISER = ("model.diffusion_model.", "diffusion_model.", "transformer.")
VAE = ("first_stage_model.", "vae.")
CLIP_L = (
    *("text_encoders.clip_l.transformer.", "clip_l.transformer.", "text_encoders.clip_l.", "clip_l."),
    *("conditioner.embedders.0.transformer.", "cond_stage_model.transformer."),
)
CLIP_G = ("text_encoders.clip_g.transformer.", "clip_g.transformer.", "text_encoders.clip_g.", "clip_g.")
T5XXL = ("text_encoders.t5xxl.transformer.", "t5xxl.transformer.", "text_encoders.t5xxl.", "t5xxl.")

WHOLE = (
    *(*DENOISER[:2], *VAE),
    *("cond_stage_model.", "conditioner.", "model_ema.", "control_model.", "text_encoders."),
)
"""What the tensors of whole checkpoints lie below."""


def prefix_in(names: Iterable[str], prefixes: Iterable[str]) -> str:
    """Return the first of these prefixes that is before any of the names; "" if none is."""
    names = list(names)
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), "")
