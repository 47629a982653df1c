"""A tagger: from the pixels of an image to the tags that are kept, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.config.tools.pictures.captioning import TaggingConfig
from sfumato.data.images.resizing import resize
from sfumato.tools.captioning.tags import tag_names
from sfumato.tools.captioning.tags.tag_table import CHARACTER, GENERAL, QUALITY, RATING, TagTable
from sfumato.tools.onnx_models import OnnxModel, Pixels

USUAL_SIDE = 448
"""Of the images that taggers take, where their files do not say."""
_WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Tagger:
    """Meets `Captioner`: the parts of a caption are its tags.

    Attributes:
        names: of the outputs, as captions have them.
    """

    model: OnnxModel
    table: TagTable
    names: Sequence[str]
    options: TaggingConfig

    @property
    def fixed_batch(self) -> int | None:
        """How many images the model takes together, if it takes no other number."""
        return self.model.fixed_batch

    def prepared(self, image: Image.Image, path: Path) -> Pixels:
        """Return an RGB image as the model takes it: BGR in 0..255 with channels last, or as `_as_signed`."""
        del path
        _, first, second, _ = self.model.input_shape
        side = (second if self.table.has_logits else first) or USUAL_SIDE
        pixels = square(image, side)
        return _as_signed(pixels) if self.table.has_logits else pixels

    def captions(self, batch: Sequence[Pixels]) -> list[list[str]]:
        """Return the tags of each image."""
        (outputs, *_) = self.model(np.stack(batch))
        rows = 1 / (1 + np.exp(-outputs.astype(np.float64))) if self.table.has_logits else outputs
        return [chosen(row, self.table, self.names, self.options) for row in rows]


def square(image: Image.Image, side: int) -> Pixels:
    """Return (side, side, 3) float32 BGR in 0..255 of an RGB image, made square with white margins."""
    longest = max(image.size)
    canvas = Image.new("RGB", (longest, longest), _WHITE)
    canvas.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    pixels = np.asarray(resize(canvas, (side, side), "area" if longest > side else "lanczos"))
    return np.ascontiguousarray(pixels[:, :, ::-1], dtype=np.float32)


def chosen(
    probabilities: NDArray[np.floating], table: TagTable, names: Sequence[str], options: TaggingConfig
) -> list[str]:
    """Return the tags of one image.

    Args:
        probabilities: (T,), one for each output.
        names: (T,), as captions have them.
    """
    tags = [names[at] for at in _likely(probabilities, table, options)]
    for category, first, last in (
        (QUALITY, options.use_quality_tags, options.use_quality_tags_as_last_tag),
        (RATING, options.use_rating_tags, options.use_rating_tags_as_last_tag),
    ):
        if (first or last) and (own := table.of(category)):
            best = names[max(own, key=lambda at: probabilities[at])]
            tags = [best, *tags] if first else [*tags, best]
    undesired = set(tag_names.listed(options.undesired_tags, options.caption_separator))
    kept = [tag for tag in tags if tag not in undesired]
    first_tags = tag_names.listed(options.always_first_tags or "", options.caption_separator)
    return tag_names.moved_to_front(kept, first_tags)


def _likely(probabilities: NDArray[np.floating], table: TagTable, options: TaggingConfig) -> list[int]:
    """Return the outputs above their thresholds in the order of captions, without ratings and qualities."""
    limits = _thresholds(options)
    found = [
        at
        for at, category in enumerate(table.categories)
        if category in limits and probabilities[at] >= limits[category]
    ]
    characters = [at for at in found if table.categories[at] == CHARACTER]
    others = [at for at in found if table.categories[at] != CHARACTER]
    if table.has_logits:
        found.sort(key=lambda at: -probabilities[at])
        if not options.character_tags_first:
            return found
        return sorted(found, key=lambda at: table.categories[at] != CHARACTER)
    # sd-scripts puts each character in front of what it has so far.
    return [*reversed(characters), *others] if options.character_tags_first else [*others, *characters]


def _thresholds(options: TaggingConfig) -> dict[str, float]:
    """Return the least probability of each category; those that are none of these are never listed."""
    own = {
        GENERAL: options.general_threshold,
        CHARACTER: options.character_threshold,
        "Copyright": options.copyright_threshold,
        "Artist": options.artist_threshold,
        "Meta": options.meta_threshold,
        "Model": options.model_threshold,
    }
    return {name: options.thresh if limit is None else limit for name, limit in own.items()}


def _as_signed(pixels: Pixels) -> Pixels:
    """Return (3, H, W) in [-1, 1], which taggers with a `tag_mapping.json` take."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / 127.5 - 1)
