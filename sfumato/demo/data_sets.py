"""The demo's data sets: folders of captioned images, and the TOML files that say how to train on them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sfumato.demo.photographs import KNOWN, SIZE_PX, SUBJECT

PLAIN = "cat-alone"
REMINDED = "cat-with-regularisation"

_BATCH_SIZE = 8


def write(folder: Path, regularisation: Sequence[Image.Image]) -> dict[str, Path]:
    """Write the subject, the regularisation images and one data set file for each run.

    Args:
        regularisation: what the base generates for the known prompts, in their order.

    Returns:
        The data set files by the name of their run.
    """
    subject, reminders = folder / "subject", folder / "regularisation"
    _write_captioned(subject, [(SUBJECT.name, Image.open(SUBJECT.path), SUBJECT.prompt)])
    drawn = zip(KNOWN, regularisation, strict=True)
    _write_captioned(reminders, [(known.name, image, known.prompt) for known, image in drawn])
    # Each epoch shows the subject once for every regularisation image: half of what is learned.
    learned = _subset(subject, num_repeats=len(regularisation))
    texts = {PLAIN: learned, REMINDED: learned + _subset(reminders, is_reg=True)}
    return {name: _write_text(folder / f"{name}.toml", _HEAD + text) for name, text in texts.items()}


_HEAD = f"""[general]
caption_extension = ".txt"

[[datasets]]
resolution = {SIZE_PX}
batch_size = {_BATCH_SIZE}
"""


def _subset(folder: Path, num_repeats: int = 1, *, is_reg: bool = False) -> str:
    path = json.dumps(str(folder.resolve()))  # JSON's strings are TOML's, backslashes of Windows included
    kind = "  is_reg = true\n" if is_reg else ""
    return f"\n  [[datasets.subsets]]\n  image_dir = {path}\n  num_repeats = {num_repeats}\n{kind}"


def _write_captioned(folder: Path, images: Sequence[tuple[str, Image.Image, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, image, caption in images:
        image.save(folder / f"{name}.png")
        _write_text(folder / f"{name}.txt", caption)


def _write_text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
