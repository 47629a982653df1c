"""Where masks come from: transparency, a colour, faces, a model. In a mask, 255 counts fully."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from sfumato.config.tools.pictures.masking import MaskingConfig
from sfumato.errors import UserError
from sfumato.hub.access import HubAccess
from sfumato.tools.faces.detector import find_faces
from sfumato.tools.masking import segmentation

MaskMaker = Callable[[Image.Image], Image.Image | None]
"""Makes the mask (mode L) of an RGBA image; None where there is nothing to see."""


def maker_for(options: MaskingConfig, access: HubAccess) -> MaskMaker:
    """Return what makes the masks that are asked for.

    Raises:
        UserError: a model is missing, or cannot be read.
    """
    if options.mask_from == "faces":
        return lambda image: of_faces(image.convert("RGB"), options.face_margin)
    if options.mask_from == "colour":
        return lambda image: of_colour(image.convert("RGB"), options.background, options.tolerance)
    if options.mask_from == "model":
        if not options.model:
            raise UserError("--mask_from model needs --model; name an ONNX file")
        return segmentation.load(options.model, access, options.mean, options.std)
    return lambda image: image.getchannel("A")


def of_colour(image: Image.Image, background: tuple[int, int, int], tolerance: int) -> Image.Image:
    """Return where any channel differs from a colour by more than `tolerance` levels."""
    away = np.abs(np.asarray(image, np.int16) - np.array(background, np.int16)).max(axis=2)
    return Image.fromarray((away > tolerance).astype(np.uint8) * 255)


def of_faces(image: Image.Image, margin: float) -> Image.Image | None:
    """Return ellipses about all faces, larger by a share of each on every side; None if there is no face."""
    faces = find_faces(image)
    mask = Image.new("L", image.size)
    draw = ImageDraw.Draw(mask)
    for face in faces:
        (left, top, right, bottom), (width, height) = face.box, face.size
        across, down = margin * width, margin * height
        draw.ellipse((left - across, top - down, right + across, bottom + down), fill=255)
    return mask if faces else None
