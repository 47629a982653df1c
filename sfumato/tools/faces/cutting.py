"""Cut faces out of images: turned upright, resized, and named after where the face is.

Training cuts out again with these names (`face_crop_aug_range`):
`<image>[_<number>]_<centre x>_<centre y>_<width>_<height>.png`.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.tools.pictures.faces import FacesConfig
from sfumato.data.images.images import BrokenImageError, decode
from sfumato.data.images.resizing import resize
from sfumato.data.sources.complaints import Complaints
from sfumato.errors import UserError
from sfumato.log import counted, progress
from sfumato.tools.faces.detector import Face, find_faces
from sfumato.tools.preparation import records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Portrait:
    """An image about a face.

    Attributes:
        centre, size: of the face, in pixels of the image.
    """

    image: Image.Image
    centre: tuple[int, int]
    size: tuple[int, int]

    @property
    def position(self) -> str:
        """How names of files tell where the face is."""
        return "_".join(f"{number:04d}" for number in (*self.centre, *self.size))


def cut_faces(options: FacesConfig) -> None:
    """Write an image for each face that is large enough.

    Raises:
        UserError: a folder cannot be read or written, no face was found, or the detector is not installed.
    """
    paths, target = records.images(options.src_dir or ""), Path(options.dst_dir or "")
    complaints = Complaints()
    try_folder(target, "choose another folder for the faces")
    num_written = 0
    for path in progress(paths, unit="image", title="cutting out faces"):
        try:
            image = decode(path)
        except BrokenImageError as error:
            complaints.leave_out(str(path), str(error))
            continue
        found = [face for face in find_faces(image) if _is_wanted(face, options)]
        if not found:
            complaints.leave_out(str(path), "there is no face in it of a size that is asked for")
        for number, face in enumerate(found):
            portrait = portrayed(image, face, options)
            infix = f"_{number:02d}" if options.multiple_faces else ""
            _write(portrait.image, target / f"{path.stem}{infix}_{portrait.position}.png")
        num_written += len(found)
    if not num_written:
        raise UserError(f"no face was found in {options.src_dir}; give other images, or a smaller --min_size")
    logger.info("%s in %s", counted(num_written, "face"), target)


def portrayed(image: Image.Image, face: Face, options: FacesConfig) -> Portrait:
    """Return the image about a face that the options ask for."""
    image = _with_marks(image, face) if options.debug else image
    centre = int(face.centre[0]), int(face.centre[1])
    size = int(face.size[0]), int(face.size[1])
    if options.rotate:
        image = turned(image, face.angle, centre)
    portrait = Portrait(image, centre, size)
    wanted = _wanted(portrait, options)
    portrait = _resized(portrait, _scale(portrait, wanted, options))
    return _cut_out(portrait, wanted) if wanted else portrait


def turned(image: Image.Image, angle: float, centre: tuple[int, int]) -> Image.Image:
    """Return an image turned about a point, mirrored at its borders.

    Args:
        angle: degrees against the clock.
    """
    radians = math.radians(angle)
    x = np.array([0, image.width, 0, image.width]) - centre[0]
    y = np.array([0, 0, image.height, image.height]) - centre[1]
    across = x * math.cos(radians) - y * math.sin(radians) + centre[0]
    down = x * math.sin(radians) + y * math.cos(radians) + centre[1]
    left, top = max(0, math.ceil(-across.min())), max(0, math.ceil(-down.min()))
    right = max(0, math.ceil(across.max()) - image.width)
    bottom = max(0, math.ceil(down.max()) - image.height)
    mirrored = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="symmetric")
    about = centre[0] + left, centre[1] + top
    whole = Image.fromarray(mirrored).rotate(angle, Image.Resampling.BILINEAR, center=about)
    return whole.crop((left, top, left + image.width, top + image.height))


def _is_wanted(face: Face, options: FacesConfig) -> bool:
    longer = max(face.size)
    return (options.min_size or 0) <= longer < (options.max_size or math.inf)


def _wanted(portrait: Portrait, options: FacesConfig) -> tuple[int, int] | None:
    """Return the width and height to cut out; None for the whole image."""
    if options.times is None:
        return options.crop
    longer = max(portrait.size)
    return int(longer * options.times[0] + 0.5), int(longer * options.times[1] + 0.5)


def _scale(portrait: Portrait, wanted: tuple[int, int] | None, options: FacesConfig) -> float:
    """Return by how much to resize: at least so that what is to be cut out fits in."""
    image = portrait.image
    covering = max(wanted[0] / image.width, wanted[1] / image.height) if wanted else 0.0
    if options.resize_face_size:
        return max(options.resize_face_size / max(portrait.size), covering)
    if options.resize_fit:
        return covering
    return 1.0 if options.times else max(1.0, covering)


def _resized(portrait: Portrait, scale: float) -> Portrait:
    if scale == 1:
        return portrait

    def scaled(pair: tuple[int, int]) -> tuple[int, int]:
        return int(pair[0] * scale + 0.5), int(pair[1] * scale + 0.5)

    image = resize(portrait.image, scaled(portrait.image.size), "area" if scale < 1 else "lanczos")
    return Portrait(image, scaled(portrait.centre), scaled(portrait.size))


def _cut_out(portrait: Portrait, wanted: tuple[int, int]) -> Portrait:
    """Cut out a rectangle about the face, moved where it would leave the image."""
    image = portrait.image
    width, height = min(wanted[0], image.width), min(wanted[1], image.height)
    left = min(max(portrait.centre[0] - width // 2, 0), image.width - width)
    top = min(max(portrait.centre[1] - height // 2, 0), image.height - height)
    centre = portrait.centre[0] - left, portrait.centre[1] - top
    return replace(portrait, image=image.crop((left, top, left + width, top + height)), centre=centre)


def _with_marks(image: Image.Image, face: Face) -> Image.Image:
    marked = image.copy()
    draw = ImageDraw.Draw(marked)
    draw.rectangle(face.box, outline=(255, 0, 0), width=2)
    for x, y in face.eyes:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), outline=(0, 255, 0), width=2)
    return marked


def _write(image: Image.Image, path: Path) -> None:
    with atomic_file(path) as file:
        image.save(file, "PNG")
