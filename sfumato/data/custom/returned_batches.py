"""What a user's own data set returns, turned into a batch: sd-scripts' names, each checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor

from sfumato.data.batches.collate import Batch
from sfumato.errors import UserError
from sfumato.log import counted, plural

USED = (
    *("images", "latents", "captions", "loss_weights", "network_multipliers", "original_sizes_hw"),
    *("crop_top_lefts", "target_sizes_hw", "alpha_masks", "custom_attributes"),
)
NOT_NEEDED = ("input_ids", "input_ids2", "input_ids_list", "flippeds", "image_keys")
"""Names that classes for sd-scripts return too: captions are made into tokens here."""

_ROUNDING = 1e-3
_SHOWN = 60


@dataclass(frozen=True)
class Geometry:
    """What images and latents of a model family are like.

    Attributes:
        channels: of latents.
        downscale: sides of an image over those of its latents.
        multiple: what sides of images must be multiples of.
        scaled: from latents as cache files hold them to latents as the denoiser sees them; None where those
            are the same.
    """

    channels: int
    downscale: int
    multiple: int
    scaled: Callable[[Tensor], Tensor] | None = None


def batch_of(example: Any, geometry: Geometry, where: str) -> Batch:
    """Return the batch that a mapping describes; see docs/datasets.md for its names.

    Args:
        where: the mapping comes from, for messages and as the file name of its images.

    Raises:
        UserError: something is missing, unknown, or of a wrong type, shape or range.
    """
    return _Example(_checked_names(example, where), geometry, where).batch()


def _checked_names(example: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(example, Mapping):
        raise UserError(f"{where} is {_shown(example)}; return a mapping with images and captions")
    given = {str(name): value for name, value in example.items() if value is not None}
    if strangers := [name for name in given if name not in (*USED, *NOT_NEEDED)]:
        known = ", ".join(USED)
        raise UserError(f"{where} has {strangers[0]!r}, which means nothing here; known are {known}")
    if "captions" not in given:
        raise UserError(f"{where} has no captions; return one text for each image")
    return given


@dataclass(frozen=True)
class _Example:
    given: Mapping[str, Any]
    geometry: Geometry
    where: str

    def batch(self) -> Batch:
        captions = self._captions()
        latents = self._latents(len(captions)) if "latents" in self.given else None
        pixels = self._pixels(len(captions)) if latents is None else None
        size = self._size(latents, pixels)
        whole, corner = torch.tensor([size] * len(captions)), torch.zeros(len(captions), 2)
        return Batch(
            captions=captions,
            paths=[self.where] * len(captions),
            loss_weights=self._numbers("loss_weights", torch.ones(len(captions))),
            network_multipliers=self._multipliers(len(captions)),
            original_sizes=self._numbers("original_sizes_hw", whole).long(),
            crop_offsets=self._numbers("crop_top_lefts", corner).long(),
            target_sizes=self._numbers("target_sizes_hw", whole).long(),
            latents=latents,
            pixels=pixels,
            masks=self._masks(len(captions), size) if "alpha_masks" in self.given else None,
            custom_attributes=self._attributes(len(captions)),
        )

    def _captions(self) -> list[str]:
        captions = self.given["captions"]
        is_list = isinstance(captions, Sequence) and not isinstance(captions, str)
        if not is_list or not captions or not all(isinstance(text, str) for text in captions):
            raise self._wrong("captions", _shown(captions), "return a list of texts, one for each image")
        return list(captions)

    def _pixels(self, count: int) -> Tensor:
        if "images" not in self.given:
            raise UserError(f"{self.where} has neither images nor latents; return one of them")
        pixels, multiple = self._tensor("images"), self.geometry.multiple
        shape = tuple(pixels.shape)
        if len(shape) != 4 or shape[:2] != (count, 3) or 0 in shape:
            expected = f"({count}, 3, height, width), as there {_captions(count)}"
            raise self._wrong("images", f"of shape {shape}", f"it must be {expected}")
        if any(side % multiple for side in shape[2:]):
            raise self._wrong("images", f"of shape {shape}", f"sides must be multiples of {multiple}")
        return self._within("images", pixels, -1.0, 1.0)

    def _latents(self, count: int) -> Tensor:
        latents, geometry = self._tensor("latents"), self.geometry
        shape, unit = tuple(latents.shape), geometry.multiple // geometry.downscale
        if len(shape) != 4 or shape[:2] != (count, geometry.channels) or 0 in shape:
            expected = f"({count}, {geometry.channels}, height, width), as there {_captions(count)}"
            raise self._wrong("latents", f"of shape {shape}", f"it must be {expected}")
        if any(side % unit for side in shape[2:]):
            raise self._wrong("latents", f"of shape {shape}", f"sides must be multiples of {unit}")
        latents = self._within("latents", latents)
        return geometry.scaled(latents) if geometry.scaled else latents

    def _size(self, latents: Tensor | None, pixels: Tensor | None) -> tuple[int, int]:
        """Return (height, width) of the images, in pixels."""
        if pixels is not None:
            return pixels.shape[2], pixels.shape[3]
        assert latents is not None
        return latents.shape[2] * self.geometry.downscale, latents.shape[3] * self.geometry.downscale

    def _masks(self, count: int, size: tuple[int, int]) -> Tensor:
        masks = self._tensor("alpha_masks")
        masks = masks[:, None] if masks.ndim == 3 else masks
        small = size[0] // self.geometry.downscale, size[1] // self.geometry.downscale
        if tuple(masks.shape) not in [(count, 1, *size), (count, 1, *small)]:
            expected = f"({count}, {size[0]}, {size[1]}), or ({count}, {small[0]}, {small[1]}) as latents are"
            shape = tuple(masks.squeeze(1).shape)
            raise self._wrong("alpha_masks", f"of shape {shape}", f"it must be {expected}")
        return self._within("alpha_masks", masks, 0.0, 1.0)

    def _numbers(self, name: str, default: Tensor) -> Tensor:
        if name not in self.given:
            return default
        found = self._tensor(name)
        if found.shape != default.shape:
            expected = f"it must be {tuple(default.shape)}"
            raise self._wrong(name, f"of shape {tuple(found.shape)}", expected)
        return self._within(name, found)

    def _multipliers(self, count: int) -> Tensor:
        found = self._numbers("network_multipliers", torch.ones(count))
        if (found != found[0]).any():
            raise self._wrong("network_multipliers", found.tolist(), "they must be the same in one batch")
        return found

    def _attributes(self, count: int) -> list[Mapping[str, Any]]:
        found = self.given.get("custom_attributes", [{}] * count)
        is_list = isinstance(found, Sequence) and all(isinstance(one, Mapping) for one in found)
        if not is_list or len(found) != count:
            raise self._wrong(
                "custom_attributes", _shown(found), f"return a list of {counted(count, 'mapping')}"
            )
        return list(found)

    def _tensor(self, name: str) -> Tensor:
        try:
            return torch.as_tensor(self.given[name]).detach().cpu().float()
        except (TypeError, ValueError, RuntimeError):
            raise self._wrong(name, _shown(self.given[name]), "it must be a tensor of numbers") from None

    def _within(self, name: str, values: Tensor, low: float = -inf, high: float = inf) -> Tensor:
        """Return the values after a look at their range."""
        least, most = values.aminmax()
        if not (least.isfinite() and most.isfinite()):
            raise self._wrong(name, "not finite", "it holds infinite values or NaN")
        if least < low - _ROUNDING or most > high + _ROUNDING:
            found = f"between {least.item():.4g} and {most.item():.4g}"
            raise self._wrong(name, found, f"values must lie between {low:g} and {high:g}")
        return values

    def _wrong(self, name: str, found: object, remedy: str) -> UserError:
        return UserError(f"{self.where}: {name} is {found}; {remedy}")


def _captions(count: int) -> str:
    return f"{plural(count, 'is', 'are')} {counted(count, 'caption')}"


def _shown(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
