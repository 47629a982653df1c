"""PNG files that tell how they were made, under names that are never taken twice."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config import json_text
from sfumato.config.field_types import made_of
from sfumato.errors import UserError
from sfumato.sampling.request import Request

PARAMETERS = "parameters"
"""Text chunk in the form of the web UIs, which read the image's settings back from it."""

RECORD = "sfumato"
"""Text chunk with the request, and what was said about the models, as JSON."""


def save_image(
    image: Image.Image, folder: Path, request: Request, details: Mapping[str, Any] | None = None
) -> Path:
    """Write an image named after the moment, with its parameters inside; return its path.

    Args:
        request: what the image was made from.
        details: whatever else a person needs to make it again (model, adapters), as JSON values.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    return write_image(image, free_path(folder), request, details)


def write_image(
    image: Image.Image, path: Path, request: Request, details: Mapping[str, Any] | None = None
) -> Path:
    """Write an image to `path` with its parameters inside; the file appears only when it is complete."""
    data = io.BytesIO()
    image.save(data, "PNG", pnginfo=_chunks(request, details or {}))
    with atomic_file(path, data.getbuffer().nbytes) as file:
        file.write(data.getbuffer())
    return path


def free_path(folder: Path) -> Path:
    """Return `<folder>/<date>_<time>.png`, with a number behind it if there is such a file already."""
    stem = time.strftime("%Y%m%d_%H%M%S")
    path, number = folder / f"{stem}.png", 1
    while path.exists():
        path, number = folder / f"{stem}_{number}.png", number + 1
    return path


def read_request(path: Path) -> Request:
    """Return the request that an image was made from.

    Raises:
        UserError: the file is no image, or was not made by this program.
    """
    try:
        with Image.open(path) as image:
            return made_of(Request, json_text.parse(image.info[RECORD])["request"])
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}") from None
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path} does not tell how it was made; only PNG files from here do") from None


def parameters(request: Request, details: Mapping[str, Any]) -> str:
    """Return the settings as the web UIs write them: prompt, negative prompt, a line of names and values."""
    settings = {
        "Steps": request.steps,
        "Sampler": request.sampler.capitalize(),
        "CFG scale": request.cfg_scale,
        "Distilled CFG Scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        **{name.capitalize(): _plain(value) for name, value in details.items() if value},
        "Version": RECORD,
    }
    lines = [request.prompt]
    if request.is_guided_by_negative:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    lines.append(", ".join(f"{name}: {value}" for name, value in settings.items()))
    return "\n".join(lines)


def _chunks(request: Request, details: Mapping[str, Any]) -> PngInfo:
    chunks = PngInfo()
    chunks.add_text(PARAMETERS, parameters(request, details))
    said = {name: value for name, value in asdict(request).items() if value is not None}
    record = {"request": said, **details}
    chunks.add_text(RECORD, json.dumps(record, ensure_ascii=False))
    return chunks


def _plain(value: object) -> object:
    """Return a value as it may stand between commas: text with a comma or colon is quoted."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:"') else text
