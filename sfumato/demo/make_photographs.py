"""Cut the demo's photographs out of the ones that come with scikit-image (extra: demo)."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from sfumato import installing
from sfumato.demo.photographs import KNOWN, SIZE_PX, SUBJECT
from sfumato.errors import UserError


def originals() -> Path:
    """Return the folder of scikit-image's photographs.

    Raises:
        UserError: scikit-image is not installed.
    """
    try:
        import skimage
    except ImportError:
        remedy = installing.command_for("skimage")
        raise UserError(f"making the toy base needs scikit-image: run {remedy}") from None
    return Path(skimage.data_dir)


def cut(source: Path) -> None:
    """Write each photograph's crop, SIZE_PX square, to where the package keeps it."""
    for photograph in (*KNOWN, SUBJECT):
        left, top, side = photograph.box
        photograph.path.parent.mkdir(exist_ok=True)
        with Image.open(source / photograph.original) as image:
            crop = image.convert("RGB").crop((left, top, left + side, top + side))
        crop.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS).save(photograph.path, optimize=True)
