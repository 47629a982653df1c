"""Names and text of the image files that gen_img writes, which other programs and people know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sfumato.sampling.request import Request
from sfumato.sampling.settings.sizes import SizeConditions

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
    request: Request, *, seed: int, sampler: str, raw_prompt: str, has_sizes: bool
) -> Mapping[str, str]:
    """Return the texts of a PNG file by their keys.

    Args:
        raw_prompt: the whole line, options included.
        has_sizes: whether the model is told sizes (`ImageSizes`).
    """
    texts: dict[str, object] = {
        "prompt": request.prompt,
        "seed": seed,
        "sampler": sampler,
        "steps": request.steps,
        "scale": request.cfg_scale,
        "negative-prompt": request.negative_prompt,
    }
    if request.negative_scale is not None:
        texts["negative-scale"] = request.negative_scale
    if request.clip_prompt is not None:
        texts["clip-prompt"] = request.clip_prompt
    texts["raw-prompt"] = raw_prompt
    if has_sizes:
        texts |= _sizes(request.sizes or SizeConditions())
    return {name: str(value) for name, value in texts.items()}


def _sizes(sizes: SizeConditions) -> dict[str, object]:
    return {
        "original-height": sizes.original_height,
        "original-width": sizes.original_width,
        "original-height-negative": sizes.original_height_negative,
        "original-width-negative": sizes.original_width_negative,
        "crop-top": sizes.crop_top,
        "crop-left": sizes.crop_left,
    }
