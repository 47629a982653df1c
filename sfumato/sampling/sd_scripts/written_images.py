"""The files that a run writes: their names, and the texts within them."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.image_scripts.image_files import ImageFileConfig
from sfumato.errors import UserError
from sfumato.sampling.output.image_files import PARAMETERS, parameters
from sfumato.sampling.output.image_names import Stage, dated_name, numbered_name, text_chunks
from sfumato.sampling.sd_scripts.asked_images import AskedImage


class WrittenImages:
    """Writes the images of a run into its folder, none of them over another.

    Args:
        sampler: its name as it was given.
        has_sizes: whether the model is told sizes.
        details: what else a person needs to make an image again, as JSON values.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(
        self, config: ImageFileConfig, *, sampler: str, has_sizes: bool, details: Mapping[str, Any]
    ) -> None:
        self._config = config
        self._folder = Path(config.outdir)
        self._sampler = sampler
        self._has_sizes = has_sizes
        self._details = details
        self._written: set[Path] = set()
        try_folder(self._folder, "choose another --outdir")

    def write(self, image: Image.Image, asked: AskedImage, *, place: int, stage: Stage = "") -> Path:
        """Write one image and return its path.

        Args:
            place: of the image in its batch, from 0.

        Raises:
            UserError: the name's suffix is that of no image format, or the disk is full.
        """
        path = self._unwritten(self._folder / self._name(asked, place, stage))
        data = io.BytesIO()
        image.save(data, _format_of(path), **self._settings(path, asked))
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, data.getbuffer().nbytes) as file:
            file.write(data.getbuffer())
        self._written.add(path)
        return path

    def _name(self, asked: AskedImage, place: int, stage: Stage) -> str:
        if asked.file_name and stage != "0":
            name = asked.file_name.strip()
            return name if Path(name).suffix else f"{name}.png"
        if self._config.use_original_file_name and asked.start is not None:
            return f"{asked.start.stem}.png"
        if self._config.sequential_file_name:
            return numbered_name(asked.number + 1, stage)
        return dated_name(time.strftime("%Y%m%d%H%M%S"), place, asked.request.seed, stage)

    def _unwritten(self, path: Path) -> Path:
        number, free = 1, path
        while free in self._written:
            free = path.with_name(f"{path.stem}_{number}{path.suffix}")
            number += 1
        return free

    def _settings(self, path: Path, asked: AskedImage) -> dict[str, Any]:
        if path.suffix.lower() == ".webp":
            return {"quality": 100}
        return {"pnginfo": self._texts(asked)} if path.suffix.lower() == ".png" else {}

    def _texts(self, asked: AskedImage) -> PngInfo:
        texts = PngInfo()
        told = text_chunks(
            asked.request,
            seed=asked.request.seed,
            sampler=self._sampler,
            raw_prompt=asked.line,
            has_sizes=self._has_sizes,
        )
        for name, text in {**told, PARAMETERS: parameters(asked.request, self._details)}.items():
            texts.add_text(name, text)
        return texts


def _format_of(path: Path) -> str:
    known = Image.registered_extensions()
    name = known.get(path.suffix.lower())
    if name is None or name not in Image.SAVE:
        raise UserError(f"prompt option --f is '{path.name}', whose suffix is of no image; write .png")
    return name
