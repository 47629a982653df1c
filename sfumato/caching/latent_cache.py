"""Where cached latents lie: in memory, or in files beside the images under the names of sd-scripts."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from sfumato import seeds
from sfumato.caching import store
from sfumato.caching.memory import MemoryStore
from sfumato.caching.records import MASK
from sfumato.caching.store import BrokenCacheError
from sfumato.data.batches.image_sets import ImageSet
from sfumato.data.images import images, masks
from sfumato.data.images.buckets import Size
from sfumato.data.images.images import BrokenImageError, stem
from sfumato.errors import UserError
from sfumato.models.interface.latents import CacheFormat, LatentSpace

Job = tuple[int, int]
"""Index of a data set and of an image in it."""

ALPHA = "alpha_mask"


@dataclass
class LatentCache:
    """Where cached latents lie; a `LatentSource` of the training set.

    Attributes:
        format: of the family's cache files.
        space: of the family's latents.
        memory: latents by (data set, image, flipped), or None where they are on disk.
        broken: images that could not be decoded.
    """

    sets: Sequence[ImageSet]
    format: CacheFormat
    space: LatentSpace
    memory: MemoryStore | None = None
    broken: set[Job] = field(default_factory=set)

    def __call__(self, dataset: int, image: int, flipped: bool) -> Tensor:
        """Return the scaled latents (C, h, w) of an image as it is trained.

        Raises:
            BrokenImageError: the image could not be decoded.
            UserError: its file of latents is damaged, or was deleted.
        """
        if (dataset, image) in self.broken:
            raise BrokenImageError("it could not be decoded")
        if self.memory is not None:
            return self.memory[dataset, image, flipped]
        name, shape = self.name(dataset, image, flipped), (self.space.channels, *self.size(dataset, image))
        stored = self._stored(dataset, image, name)
        if stored.shape != shape:
            where = self.path(dataset, image)
            raise UserError(
                f"{where}: {name} is {tuple(stored.shape)}, not {shape}; delete it and start again"
            )
        return stored if self.format.is_scaled else self.space.scaled(stored)

    def mask(self, dataset: int, image: int, flipped: bool) -> Tensor | None:
        """Return the loss mask (1, h, w) of an image that is not broken, if it has one."""
        name = self.mask_name(dataset, image)
        if name is None:
            return None
        if self.memory is not None:
            mask = self.memory[dataset, image, MASK]
        else:
            mask = masks.shrunk(self._stored(dataset, image, name)[None], self.size(dataset, image))
        return mask.flip(-1) if flipped else mask

    def _stored(self, dataset: int, image: int, name: str) -> Tensor:
        path = self.path(dataset, image)
        try:
            found = {key: store.as_tensor(key, array) for key, array in store.read(path, [name]).items()}
        except BrokenCacheError as error:
            raise UserError(f"{path} is damaged ({error}); delete it and start again") from error
        if name in found:
            return found[name]
        if path.exists():
            raise UserError(f"{path} has no {name}; start again without --skip_cache_check")
        images.decode(self.sets[dataset].images.paths[image])  # another process may have found it broken
        raise UserError(f"{path} is gone, which was there when the run began; start again, it is made anew")

    def jobs(self) -> Iterator[Job]:
        """Yield all images."""
        for dataset, image_set in enumerate(self.sets):
            yield from ((dataset, index) for index in range(len(image_set.images)))

    def path(self, dataset: int, image: int) -> Path:
        """Return the cache file of an image: `<base>_<width>x<height>_<family>.npz`, of its own size."""
        return Path(self.file(dataset, image))

    def file(self, dataset: int, image: int) -> str:
        """Return `path` as a string: a hundred thousand Path objects take their time."""
        image_set = self.sets[dataset]
        return stem(image_set.images.paths[image]) + self.ending(image_set.size(image))

    def ending(self, size: Size) -> str:
        """Return what is appended to the stem of an image of that size."""
        return f"_{size[0]:04d}x{size[1]:04d}{self.format.latents}"

    def older_file(self, dataset: int, image: int) -> str | None:
        """Return the name that sd-scripts gave the file before, where it had another."""
        base = stem(self.sets[dataset].images.paths[image])
        return base + self.format.older if self.format.older else None

    def name(self, dataset: int, image: int, flipped: bool) -> str:
        """Return the name of latents within the file: `latents` or `latents_flipped`, and `key_suffix`."""
        return ("latents_flipped" if flipped else "latents") + self.key_suffix(dataset, image)

    def mask_name(self, dataset: int, image: int) -> str | None:
        """Return the name of an image's mask within the file; None where it has none.

        Transparency has the name and the size, (H, W) of pixels, that sd-scripts gives it. It keeps no other
        masks: those are (h, w) of latents, which takes a 64th of the room.
        """
        mask = self.sets[dataset].mask(image)
        if mask is None:
            return None
        return (ALPHA if mask.is_alpha else "loss_mask") + self.key_suffix(dataset, image)

    def key_suffix(self, dataset: int, image: int) -> str:
        """Return `_<h>x<w>`, the latents' size, where one file holds those of several sizes; "" elsewhere."""
        if not self.format.is_sized:
            return ""
        height, width = self.size(dataset, image)
        return f"_{height}x{width}"

    def flips(self, dataset: int, image: int) -> tuple[bool, ...]:
        """Return whether each of an image's latents is of the mirrored image."""
        return (False, True) if self.sets[dataset].subset(image).flip_aug else (False,)

    def size(self, dataset: int, image: int) -> tuple[int, int]:
        """Return (height, width) of an image's latents."""
        width, height = self.sets[dataset].fit(image).bucket
        return height // self.space.downscale, width // self.space.downscale


def is_mine(file: str, rank: int, world: int) -> bool:
    """Give all that goes into one file to one process, for two must not change a file at the same time."""
    return seeds.derive("cache file", os.path.basename(file)) % world == rank
