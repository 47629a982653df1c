"""Images of twice the size, sharpened by the latent upscaler."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.tools.upscaling import UpscalingConfig
from sfumato.data.images.buckets import Size
from sfumato.data.images.images import SUFFIXES, BrokenImageError, decode, read_size
from sfumato.data.sources.complaints import Complaints
from sfumato.errors import UserError
from sfumato.log import counted, progress
from sfumato.models.components import autoencoder
from sfumato.nn.device import default_device
from sfumato.sampling.hires.latent_upscaler import SCALE, LatentUpscaler, create_upscaler
from sfumato.sampling.parts.codec import to_image

FACTOR = 2
QUALITY = 95
"""Of files that lose something."""
_MULTIPLE = 8
"""Sides are cut down to it, for latents are that much smaller."""

logger = logging.getLogger(__name__)


def upscale(options: UpscalingConfig) -> None:
    """Write `<name>_upscaled<suffix>` for each image, with sides of twice the length.

    Raises:
        UserError: a file cannot be read, no image is found, or the folder cannot be written to.
    """
    paths = [Path(name) for name in sorted(glob.glob(options.image_pattern or "", recursive=True))]
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise UserError(f"--image_pattern is {options.image_pattern}: no image has such a name")
    _require_different_names(paths)
    target = Path(options.output_dir)
    try_folder(target, "choose another --output_dir")
    target.mkdir(parents=True, exist_ok=True)
    device = default_device()
    upscaler = create_upscaler(weights=options.weights or "").to(device)
    vae = autoencoder.load(Path(options.vae_path or ""), torch.float32, device)
    complaints = Complaints()
    with progress(total=len(paths), unit="image", title="upscaling") as bar:
        for batch in _batches(paths, options.batch_size):
            images = _read(batch, complaints)
            made = _enlarged(list(images.values()), upscaler, vae, options.vae_batch_size)
            for path, image in zip(images, made, strict=True):
                _write(image, target / f"{path.stem}_upscaled{path.suffix}")
            bar.update(len(batch))
    if len(complaints.broken) == len(paths):
        raise UserError(f"--image_pattern is {options.image_pattern}: no such image can be read; give others")
    number = counted(len(paths) - len(complaints.broken), "image")
    logger.info("%s of twice the size in %s", number, target)


def _require_different_names(paths: Sequence[Path]) -> None:
    """Raise UserError for images of several folders that would be written over each other."""
    first: dict[str, Path] = {}
    for path in paths:
        if first.setdefault(path.name, path) != path:
            raise UserError(
                f"--image_pattern finds {first[path.name]} and {path}, which --output_dir has one name for; "
                "take one folder at a time"
            )


def _batches(paths: Sequence[Path], largest: int) -> Iterator[list[Path]]:
    """Yield images that are made at once: neighbours of one size."""
    for _, run in groupby(paths, _size):
        alike = list(run)
        yield from (alike[start : start + largest] for start in range(0, len(alike), largest))


def _size(path: Path) -> Size | None:
    """Return an image's size; None if it cannot be read, which is said when it is decoded."""
    try:
        return read_size(str(path))
    except BrokenImageError:
        return None


def _read(paths: Sequence[Path], complaints: Complaints) -> dict[Path, Image.Image]:
    found = {path: _image(path, complaints) for path in paths}
    return {path: image for path, image in found.items() if image is not None}


def _image(path: Path, complaints: Complaints) -> Image.Image | None:
    try:
        return _cut(decode(str(path)).convert("RGB"))
    except BrokenImageError as error:
        complaints.leave_out(str(path), str(error))
        return None


def _cut(image: Image.Image) -> Image.Image:
    """Cut sides at their end to whole latents."""
    width, height = (side // _MULTIPLE * _MULTIPLE for side in image.size)
    if not width or not height:
        raise BrokenImageError(f"it has {image.width}x{image.height} pixels, and 8x8 are the least")
    return image.crop((0, 0, width, height))


@torch.inference_mode()
def _enlarged(
    images: Sequence[Image.Image], upscaler: LatentUpscaler, vae: nn.Module, vae_batch_size: int
) -> list[Image.Image]:
    if not images:
        return []
    width, height = (FACTOR * side for side in images[0].size)
    latents = upscaler.upscale(vae, images, None, torch.float32, width, height, len(images), vae_batch_size)
    rows = (latents / SCALE).split(vae_batch_size)
    return [to_image(pixels) for row in rows for pixels in autoencoder.decode(vae, row)]


def _write(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary:
        image.save(temporary, format=Image.registered_extensions()[path.suffix.lower()], quality=QUALITY)
