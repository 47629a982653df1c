"""Images to latents: decoded, encoded together, and put where they belong."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato import seeds
from sfumato.caching import store
from sfumato.caching.latent_cache import ALPHA, Job, LatentCache
from sfumato.caching.records import IMAGE, MASK
from sfumato.caching.store import Arrays, Record
from sfumato.data.batches import render
from sfumato.data.images import masks
from sfumato.data.images.buckets import Fit, Size, crop_box
from sfumato.data.images.images import BrokenImageError, stem
from sfumato.data.sources.index import Index
from sfumato.errors import UserError
from sfumato.models.interface.family import VAE, Family
from sfumato.models.interface.parts import Parts


class Decoded(NamedTuple):
    """An image to encode: (3, H, W) in [-1, 1] and perhaps (1, H, W), or None if it could not be decoded.

    Record and finding were taken before it was opened, so that they never speak of a newer image.
    """

    job: Job
    record: Record
    finding: tuple[str, str]
    pixels: Tensor | None = None
    mask: Tensor | None = None


class Encoded(NamedTuple):
    """An image and its latents (C, h, w), scaled, by whether it was mirrored; its pixels are gone."""

    decoded: Decoded
    latents: dict[bool, Tensor]


class WantedLatents(NamedTuple):
    """A file with an image's latents that there should be, and what the index is asked and says about it."""

    job: Job
    file: str
    kind: str
    finding: str


@dataclass
class Encoder:
    """Turns images into latents and puts them where they belong."""

    cache: LatentCache
    family: Family
    parts: Parts
    vae: str
    index: Index | None = None
    _recipes: dict[tuple[Any, ...], tuple[str, str]] = field(default_factory=dict)

    def decode(self, job: Job) -> Decoded:
        """Read an image's pixels; called in other threads."""
        image_set = self.cache.sets[job[0]]
        image, subset = image_set.images[job[1]], image_set.subset(job[1])
        view = render.plain(image.size, image_set.fit(job[1]), interpolation=subset.resize_interpolation)
        record, finding = (self.record(job), self.finding(job)) if self.index is not None else ({}, ("", ""))
        try:
            return Decoded(job, record, finding, *render.render(image.path, view, image_set.mask(job[1])))
        except BrokenImageError:
            return Decoded(job, record, finding)

    def encode(self, batch: Sequence[Decoded]) -> list[Encoded]:
        """Encode images of one size together; those that could not be decoded are noted and left out."""
        self.cache.broken.update(decoded.job for decoded in batch if decoded.pixels is None)
        good = [decoded for decoded in batch if decoded.pixels is not None]
        if not good:
            return []
        jobs = [decoded.job for decoded in good]
        pixels = torch.stack([decoded.pixels for decoded in good if decoded.pixels is not None])
        flips = self.cache.flips(*jobs[0])
        latents = [self._latents(jobs, pixels.flip(-1) if flipped else pixels, flipped) for flipped in flips]
        return [
            Encoded(decoded._replace(pixels=None), {flipped: latents[flipped][row] for flipped in flips})
            for row, decoded in enumerate(good)
        ]

    def keep(self, batch: Sequence[Encoded]) -> None:
        """Put latents where they belong: into memory, or into files; called in another thread."""
        for decoded, latents in batch:
            self._keep(decoded, latents)

    def record(self, job: Job) -> Record:
        """Return what an image's latents are made from."""
        dataset, index = job
        image_set = self.cache.sets[dataset]
        record = {IMAGE: store.image_state(image_set.images.paths[index]), **self._constant(job)}
        if (mask := image_set.mask(index)) and mask.path:
            record[MASK] = store.image_state(mask.path)
        return record

    def finding(self, job: Job) -> tuple[str, str]:
        """Return what the index is asked about a file, and what it says if the latents are valid.

        That is `record` and the names of the arrays, for all images alike but for what differs in each.
        """
        image_set = self.cache.sets[job[0]]
        kind, recipe = self._recipe(job)
        image, mask = image_set.images.paths[job[1]], image_set.images.masks[job[1]]
        masked = store.image_state(mask) if mask else ""
        return kind, f"{store.image_state(image)}{masked} {recipe}"

    def wanted(self) -> Iterator[WantedLatents]:
        """Yield the files there should be, one for each image, and of each what `finding` says.

        The state of an image is that in which the folders were read: a hundred thousand need not be asked
        once more. This is where a start with complete caches spends its time, so it goes over columns.
        """
        for dataset, image_set in enumerate(self.cache.sets):
            table = image_set.images
            recipes: dict[object, tuple[str, str, str]] = {}
            states = zip(table.num_bytes, table.times_ns, strict=True)
            kinds = zip(table.subsets, table.sizes, table.train_sizes, strict=False)
            rows = zip(table.paths, table.masks, states, kinds, strict=True)
            for index, (path, mask, (num_bytes, time_ns), alike) in enumerate(rows):
                key = (alike, mask == "")
                if key not in recipes:
                    recipes[key] = self.cache.ending(image_set.size(index)), *self._recipe((dataset, index))
                ending, kind, recipe = recipes[key]
                masked = store.image_state(mask) if mask else ""
                finding = f"[{num_bytes}, {time_ns}]{masked} {recipe}"
                yield WantedLatents((dataset, index), stem(path) + ending, kind, finding)

    def _recipe(self, job: Job) -> tuple[str, str]:
        dataset, index = job
        image_set = self.cache.sets[dataset]
        has_mask = image_set.images.masks[index] != ""
        alike = (dataset, image_set.images.subsets[index], image_set.fit(index)[:2], has_mask)
        if alike not in self._recipes:
            names = [self.cache.name(*job, flipped) for flipped in self.cache.flips(*job)]
            recipe = json.dumps([*names, self.cache.mask_name(*job), self._constant(job)])
            digest = hashlib.sha256(recipe.encode()).hexdigest()[:32]
            self._recipes[alike] = f"latents{self.cache.key_suffix(*job)}", digest
        return self._recipes[alike]

    def _constant(self, job: Job) -> Record:
        """Return the part of the record that many images share."""
        image_set = self.cache.sets[job[0]]
        fit, interpolation = image_set.fit(job[1]), image_set.subset(job[1]).resize_interpolation
        mask = image_set.mask(job[1])
        return {
            "vae": self.vae,
            "dtype": str(self.parts.dtypes.get(VAE, torch.float32)),
            "resized": list(fit.resized),
            "bucket": list(fit.bucket),
            **({"interpolation": interpolation} if interpolation else {}),
            **({"alpha": True} if mask and mask.is_alpha else {}),
        }

    def _latents(self, jobs: Sequence[Job], pixels: Tensor, flipped: bool) -> Tensor:
        vae = self.parts[VAE]
        files = [os.path.basename(self.cache.file(*job)) for job in jobs]
        rng = torch.Generator().manual_seed(seeds.derive("vae", *files, *pixels.shape, int(flipped)))
        with torch.no_grad():
            latents = self.family.encode_image(vae, pixels.to(self.parts.device), rng).float().cpu()
        if not latents.isfinite().all():
            raise UserError(
                f"the VAE's output for {files[0]} is not finite; use --no_half_vae or another VAE"
            )
        return latents

    def _keep(self, decoded: Decoded, latents: dict[bool, Tensor]) -> None:
        job, mask = decoded.job, decoded.mask
        if self.cache.memory is not None:
            for flipped, tensor in latents.items():
                self.cache.memory.put((*job, flipped), tensor)
            if mask is not None:
                self.cache.memory.put((*job, MASK), masks.shrunk(mask, self.cache.size(*job)))
            return
        image_set, suffix = self.cache.sets[job[0]], self.cache.key_suffix(*job)
        stored = latents
        if not self.cache.format.is_scaled:
            stored = {flipped: self.cache.space.raw(tensor) for flipped, tensor in latents.items()}
        arrays: Arrays = {self.cache.name(*job, flipped): store.as_array(x) for flipped, x in stored.items()}
        if (name := self.cache.mask_name(*job)) and mask is not None:
            kept = mask if name.startswith(ALPHA) else masks.shrunk(mask, self.cache.size(*job))
            arrays[name] = store.as_array(kept[0])
        arrays |= _framing(image_set.size(job[1]), image_set.fit(job[1]), suffix)
        arrays[store.RECORD + suffix] = store.record_array(decoded.record)
        path = self.cache.path(*job)
        # What else a file holds that is older than its image is stale, and must not look fresh from now on.
        is_fresh = path.exists() and store.is_newer(path, image_set.images.paths[job[1]])
        (store.update if is_fresh else store.write)(path, arrays)
        if self.index is not None:
            kind, finding = decoded.finding
            self.index.learn_own(kind, str(path), finding)


def _framing(size: Size, fit: Fit, suffix: str) -> Arrays:
    """Return what sd-scripts stores beside latents: size of the image (width, height) and its crop box."""
    return {
        "original_size" + suffix: np.array(size, dtype=np.int64),
        "crop_ltrb" + suffix: np.array(crop_box(fit.bucket, size), dtype=np.float64),
    }
