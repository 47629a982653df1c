"""Smaller copies of images in several sizes, each made from the one before."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.tools.preparation import ShrinkingConfig
from sfumato.data.images.buckets import Size, centre_crop
from sfumato.data.images.images import SUFFIXES, BrokenImageError, decode
from sfumato.data.images.resizing import resize
from sfumato.data.sources import index
from sfumato.data.sources.complaints import Complaints
from sfumato.errors import UserError
from sfumato.log import counted, progress

JPEG_QUALITY = 100
"""These copies are encoded once more, as latents; what JPEG loses would be learned."""

logger = logging.getLogger(__name__)


def shrink(options: ShrinkingConfig) -> None:
    """Write `<name>+<size>.jpg` for every image and size, and copy all other files as they are.

    Raises:
        UserError: a folder cannot be read or written, or no image can be read.
    """
    source, target = Path(options.src_img_folder), Path(options.dst_img_folder)
    files, complaints = _files(source), Complaints()
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    others = [path for path in files if path.suffix.lower() not in SUFFIXES]
    if not images:
        raise UserError(f"{source} has no images")
    try_folder(target, "choose another folder for the copies")
    with progress(total=len(images), unit="image", title="resizing images") as bar:
        for path in images:
            try:
                _write_copies(decode(path), path.stem, target, options)
            except BrokenImageError as error:
                complaints.leave_out(str(path), str(error))
            bar.update()
    if len(complaints.broken) == len(images):
        raise UserError(f"no image in {source} can be read")
    _copy(others, images, target, options)
    number = counted(len(images) - len(complaints.broken), "image")
    logger.info("copies of %s are in %s", number, target)


def fit_area(size: Size, limit: Size, divisible_by: int) -> tuple[Size, Size]:
    """Return what an image is resized to, and what is then cut out of its middle.

    Args:
        size, limit: (width, height); the area of `limit` is not exceeded, nor is the image enlarged.
        divisible_by: what both sides of the cut are multiples of.

    Raises:
        ValueError: nothing would be left.
    """
    scale = min(1.0, math.sqrt(limit[0] * limit[1] / (size[0] * size[1])))
    # A side that is whole but for rounding is not to lose a pixel.
    resized = int(size[0] * scale + 1e-6), int(size[1] * scale + 1e-6)
    cut = resized[0] // divisible_by * divisible_by, resized[1] // divisible_by * divisible_by
    if min(cut) < 1:
        raise ValueError(f"{size[0]}x{size[1]} becomes {resized[0]}x{resized[1]}")
    return resized, cut


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and path.name != index.NAME)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error


def _write_copies(image: Image.Image, stem: str, folder: Path, options: ShrinkingConfig) -> None:
    interpolation = "lanczos" if options.interpolation == "lanczos4" else options.interpolation
    for text, limit in options.sizes.items():
        try:
            resized, cut = fit_area(image.size, limit, options.divisible_by)
        except ValueError as error:
            raise BrokenImageError(f"{error}: too narrow for --divisible_by and {text}") from None
        left, top = centre_crop(resized, cut)
        image = resize(image, resized, interpolation).crop((left, top, left + cut[0], top + cut[1]))
        suffix = ".png" if options.save_as_png else ".jpg"
        with atomic_file(folder / f"{stem}+{text}{suffix}") as file:
            if options.save_as_png:
                image.save(file, "PNG")
            else:
                image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _copy(others: Sequence[Path], images: Sequence[Path], folder: Path, options: ShrinkingConfig) -> None:
    """Copy what is no image; on request, once more for each copy of an image that it belongs to."""
    stems = {path.stem for path in images}
    for path in others:
        _copy_file(path, folder / path.name)
        parts = path.name.split(".")
        stem = next((s for at in range(len(parts)) if (s := ".".join(parts[:at])) in stems), None)
        if options.copy_associated_files and stem is not None:
            for text in options.sizes:
                _copy_file(path, folder / f"{stem}+{text}{path.name[len(stem) :]}")


def _copy_file(source: Path, target: Path) -> None:
    if target.exists() and os.path.samefile(source, target):
        return
    with source.open("rb") as old, atomic_file(target, source.stat().st_size) as new:
        shutil.copyfileobj(old, new)
