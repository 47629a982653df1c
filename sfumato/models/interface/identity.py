"""What a family says of itself in files, and how images are made where nobody says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelIdentity:
    """What a family writes about itself into files.

    Attributes:
        base_version: `ss_base_model_version` of adapter files.
        architecture: `modelspec.architecture` without suffix.
        implementation: `modelspec.implementation`.
        resolution: native (width, height).
        prediction_type: `modelspec.prediction_type`, or None where the field is left out.
        adapter_implementation: `modelspec.implementation` of adapters, or None where it is the same.
        records_all_text_rates: whether `ss_text_encoder_lr` lists all rates; otherwise it is the first.
    """

    base_version: str
    architecture: str
    implementation: str
    resolution: tuple[int, int]
    prediction_type: str | None = None
    adapter_implementation: str | None = None
    records_all_text_rates: bool = False


@dataclass(frozen=True)
class SamplingDefaults:
    """What an image is made with where nobody says otherwise.

    Attributes:
        steps: sampler steps.
        guidance: distilled guidance scale; models that have none ignore it.
        cfg_scale: classifier-free guidance scale; 1 asks the denoiser once per step, without negative prompt.
        scale: which of the two the prompt-line option `--l` and the key `scale` set.
        preview_steps: sampler steps of images made during training.
    """

    steps: int
    guidance: float = 3.5
    cfg_scale: float = 1.0
    scale: Literal["guidance", "cfg_scale"] = "cfg_scale"
    preview_steps: int = 20
