"""Names and text of the image files that gen_img writes, which other programs and people know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sfumato.sampling.prompts.image_settings import ImageSettings

Stage = Literal["", "0", "1"]
"""`0` and `1` are the first and second stage of an image that is made in two sizes."""


def dated_name(moment: str, place: int, seed: int, stage: Stage = "") -> str:
    """Return the usual name of an image.

    Args:
        moment: as `20260102030405`.
        place: of the image in its batch, from 0.
    """
    return f"im_{moment}_{stage}{place:03d}_{seed}.png"


def numbered_name(number: int, stage: Stage = "") -> str:
    """Return the name of the image of that number, from 1, with `--sequential_file_name`."""
    return f"im_{stage}{number:06d}.png"


def text_chunks(
    settings: ImageSettings, *, seed: int, sampler: str, raw_prompt: str, has_sizes: bool
) -> Mapping[str, str]:
    """Return the texts of a PNG file by their keys.

    Args:
        raw_prompt: the whole line, options included.
        has_sizes: whether the model is told sizes (`ImageSizes`).
    """
    texts: dict[str, object] = {
        "prompt": settings.prompt,
        "seed": seed,
        "sampler": sampler,
        "steps": settings.steps,
        "scale": settings.scale,
        "negative-prompt": settings.negative_prompt,
    }
    if settings.negative_scale is not None:
        texts["negative-scale"] = settings.negative_scale
    if settings.clip_prompt is not None:
        texts["clip-prompt"] = settings.clip_prompt
    texts["raw-prompt"] = raw_prompt
    return {name: str(value) for name, value in (texts | (_sizes(settings) if has_sizes else {})).items()}


def _sizes(settings: ImageSettings) -> dict[str, object]:
    return {
        "original-height": settings.original_height,
        "original-width": settings.original_width,
        "original-height-negative": settings.original_height_negative,
        "original-width-negative": settings.original_width_negative,
        "crop-top": settings.crop_top,
        "crop-left": settings.crop_left,
    }
