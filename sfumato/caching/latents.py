"""Latents computed once instead of in every step, in memory or in files beside the pictures."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato import log, seeds
from sfumato.caching import store
from sfumato.caching.memory import MemoryStore
from sfumato.caching.store import Arrays, BrokenCacheError, Record
from sfumato.checkpoints.atomic import atomic_file
from sfumato.data import masks, views
from sfumato.data.buckets import Fit, Size, crop_box
from sfumato.data.dataset import TrainingSet
from sfumato.data.images import BrokenPictureError, stem
from sfumato.data.index import Index
from sfumato.data.pictures import PictureSet
from sfumato.errors import UserError
from sfumato.models.family import VAE, CacheFormat, Family, LatentSpace, Parts

Job = tuple[int, int]
"""Index of a data set and of a picture in it."""

VARYING = ("color_aug", "random_crop", "face_crop_aug_range")
"""Settings of a subset that make a picture another one each time, beside mirroring."""

_MASK, _ALPHA = "mask", "alpha_mask"
_ADOPTED = "adopted "
_DECODERS = min(4, os.cpu_count() or 1)
_BATCHES_AHEAD = 2

logger = logging.getLogger(__name__)


@dataclass
class LatentCache:
    """Where cached latents lie; a `LatentSource` of the training set.

    Attributes:
        format: of the family's cache files.
        space: of the family's latents.
        memory: latents by (data set, picture, flipped), or None where they are on disk.
        broken: pictures that could not be decoded.
    """

    sets: Sequence[PictureSet]
    format: CacheFormat
    space: LatentSpace
    memory: MemoryStore | None = None
    broken: set[Job] = field(default_factory=set)

    def __call__(self, dataset: int, picture: int, flipped: bool) -> Tensor:
        """Return the scaled latents (C, h, w) of a picture as it is trained."""
        if (dataset, picture) in self.broken:
            raise BrokenPictureError("it could not be decoded")
        if self.memory is not None:
            return self.memory[dataset, picture, flipped]
        stored = self._stored(dataset, picture, self.name(dataset, picture, flipped))
        return stored if self.format.is_scaled else self.space.scaled(stored)

    def mask(self, dataset: int, picture: int, flipped: bool) -> Tensor | None:
        """Return the loss mask (1, h, w) of a picture that is not broken, if it has one."""
        name = self.mask_name(dataset, picture)
        if name is None:
            return None
        if self.memory is not None:
            mask = self.memory[dataset, picture, _MASK]
        else:
            mask = masks.shrunk(self._stored(dataset, picture, name)[None], self.size(dataset, picture))
        return mask.flip(-1) if flipped else mask

    def _stored(self, dataset: int, picture: int, name: str) -> Tensor:
        path = self.path(dataset, picture)
        try:
            found = store.read(path, [name])
        except BrokenCacheError as error:
            raise UserError(f"{path} is damaged ({error}); delete it and start again") from error
        if name in found:
            return torch.from_numpy(found[name])
        if path.exists():
            raise UserError(f"{path} has no {name}; start again without --skip_cache_check")
        # Another process found the picture broken and wrote no file.
        raise BrokenPictureError(f"{path} is missing")

    def path(self, dataset: int, picture: int) -> Path:
        """Return the cache file of a picture: `<base>_<width>x<height>_<family>.npz`, of its own size."""
        return Path(self.file(dataset, picture))

    def file(self, dataset: int, picture: int) -> str:
        """Return `path` as a string: a hundred thousand Path objects take their time."""
        pictures = self.sets[dataset]
        width, height = pictures.size(picture)
        base = stem(pictures.pictures.paths[picture])
        return f"{base}_{width:04d}x{height:04d}{self.format.latents}"

    def older_file(self, dataset: int, picture: int) -> str | None:
        """Return the name that sd-scripts gave the file before, where it had another."""
        base = stem(self.sets[dataset].pictures.paths[picture])
        return base + self.format.older if self.format.older else None

    def name(self, dataset: int, picture: int, flipped: bool) -> str:
        """Return the name of latents within the file: `latents` or `latents_flipped`, and `key_suffix`."""
        return ("latents_flipped" if flipped else "latents") + self.key_suffix(dataset, picture)

    def mask_name(self, dataset: int, picture: int) -> str | None:
        """Return the name of a picture's mask within the file; None where it has none.

        Transparency has the name and the size, (H, W) of pixels, that sd-scripts gives it. It keeps no other
        masks: those are (h, w) of latents, which takes a 64th of the room.
        """
        mask = self.sets[dataset].mask(picture)
        if mask is None:
            return None
        return (_ALPHA if mask.is_alpha else "loss_mask") + self.key_suffix(dataset, picture)

    def key_suffix(self, dataset: int, picture: int) -> str:
        """Return `_<h>x<w>`, the latents' size, where one file holds those of several sizes; "" elsewhere."""
        if not self.format.is_sized:
            return ""
        height, width = self.size(dataset, picture)
        return f"_{height}x{width}"

    def flips(self, dataset: int, picture: int) -> tuple[bool, ...]:
        """Return whether each of a picture's latents is of the mirrored picture."""
        return (False, True) if self.sets[dataset].subset(picture).flip_aug else (False,)

    def size(self, dataset: int, picture: int) -> tuple[int, int]:
        """Return (height, width) of a picture's latents."""
        width, height = self.sets[dataset].fit(picture).bucket
        return height // self.space.downscale, width // self.space.downscale


def require_constant_pictures(training_set: TrainingSet) -> None:
    """Raise UserError if pictures vary, so that their latents cannot be computed once."""
    for subset in (subset for pictures in training_set.sets for subset in pictures.plan.subsets):
        for name in VARYING:
            if getattr(subset, name):
                raise UserError(
                    f"--cache_latents excludes {name}, which {subset.source} asks for: "
                    "cached pictures cannot vary; leave one of them out"
                )


def fill_latents(
    training_set: TrainingSet,
    family: Family,
    parts: Parts,
    *,
    batch_size: int = 1,
    to_disk: bool = False,
    trust: bool = False,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> LatentCache:
    """Encode every picture that has no valid latents yet, and let the training set load latents.

    The VAE is not loaded if nothing is missing. The posterior's noise is a function of the pictures encoded
    together (by name, size and mirroring), so it does not depend on processes or on what is cached already.

    Args:
        batch_size: pictures encoded together.
        to_disk: keep files beside the pictures; processes share the work. Otherwise each keeps all in memory.
        trust: take existing files as valid without opening them.
        rank, world: this process among all.
        wait: called when this process's part of the files is done; returns when that of all is.
    """
    cache = LatentCache(training_set.sets, family.caches, family.latents, None if to_disk else MemoryStore())
    encoder = _Encoder(cache, family, parts, "" if trust else store.model_identity(family.source(VAE)))
    jobs = [(dataset, index) for dataset, s in enumerate(cache.sets) for index in range(len(s.pictures))]
    try:
        if to_disk:
            encoder.index = training_set.index
            if training_set.has_shared_stems:
                _require_one_content_per_file(cache, jobs)
            jobs = [job for job in jobs if _is_mine(cache, job, rank, world)]
            jobs = _Checker(encoder, family, training_set.index, trust).missing(jobs)
        if jobs:
            _encode_all(encoder, jobs, batch_size)
    finally:
        training_set.index.save()
    for dataset, index in sorted(cache.broken):
        logger.warning("%s could not be decoded and is left out", cache.sets[dataset].pictures.paths[index])
    if cache.memory is not None:
        cache.memory.pack()
    wait()
    training_set.latents = cache
    return cache


def _encode_all(encoder: _Encoder, jobs: Sequence[Job], batch_size: int) -> None:
    with (
        log.progress(total=len(jobs), unit="image", title="encoding pictures") as bar,
        ThreadPoolExecutor(_DECODERS, "decoder") as pool,
    ):
        for batch in _ahead(pool, encoder.decode, _batches(encoder.cache, jobs, batch_size)):
            encoder.encode(batch)
            bar.update(len(batch))


def _ahead(
    pool: Executor, decode: Callable[[Job], _Decoded], batches: Iterable[Sequence[Job]]
) -> Iterator[list[_Decoded]]:
    """Yield the decoded pictures of each batch while the next ones are being decoded."""
    waiting: deque[list[Future[_Decoded]]] = deque()
    for batch in batches:
        waiting.append([pool.submit(decode, job) for job in batch])
        if len(waiting) > _BATCHES_AHEAD:
            yield [future.result() for future in waiting.popleft()]
    for futures in waiting:
        yield [future.result() for future in futures]


def _require_one_content_per_file(cache: LatentCache, jobs: Sequence[Job]) -> None:
    """Raise UserError if two pictures, sizes, filters or masks would have latents of one name in a file."""
    found: dict[tuple[Path, str, str], object] = {}
    for job in jobs:
        path, suffix, pictures = cache.path(*job), cache.key_suffix(*job), cache.sets[job[0]]
        mask = pictures.mask(job[1])
        contents: dict[str, object] = {
            "pictures": pictures.pictures.paths[job[1]],
            "sizes": cache.size(*job),
            "filters": pictures.subset(job[1]).resize_interpolation,
            **({"masks": mask.path} if mask and mask.path else {}),
        }
        for kind, content in contents.items():
            if found.setdefault((path, suffix, kind), content) != content:
                raise UserError(
                    f"{path} cannot hold latents of two {kind}, which this run asks for; use --cache_latents "
                    "without --cache_latents_to_disk, or copies of the pictures under other names"
                )


def _is_mine(cache: LatentCache, job: Job, rank: int, world: int) -> bool:
    """Give all latents of one file to one process, for two must not change a file at the same time."""
    return world == 1 or seeds.derive("cache file", os.path.basename(cache.file(*job))) % world == rank


def _batches(cache: LatentCache, jobs: Sequence[Job], batch_size: int) -> Iterator[list[Job]]:
    by_size: dict[tuple[Size, bool], list[Job]] = {}
    for dataset, index in jobs:
        pictures = cache.sets[dataset]
        key = (pictures.fit(index).bucket, pictures.subset(index).flip_aug)
        by_size.setdefault(key, []).append((dataset, index))
    for alike in by_size.values():
        yield from (alike[at : at + batch_size] for at in range(0, len(alike), batch_size))


class _Decoded(NamedTuple):
    """A picture to encode: (3, H, W) in [-1, 1] and perhaps (1, H, W), or None if it could not be decoded.

    Record and finding were taken before it was opened, so that they never speak of a newer picture.
    """

    job: Job
    record: Record
    finding: tuple[str, str]
    pixels: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class _Encoder:
    """Turns pictures into latents and puts them where they belong."""

    cache: LatentCache
    family: Family
    parts: Parts
    vae: str
    index: Index | None = None
    _recipes: dict[tuple[Any, ...], tuple[str, str]] = field(default_factory=dict)

    def decode(self, job: Job) -> _Decoded:
        """Read a picture's pixels; called in other threads."""
        pictures = self.cache.sets[job[0]]
        picture, subset = pictures.pictures[job[1]], pictures.subset(job[1])
        view = views.plain(picture.size, pictures.fit(job[1]), interpolation=subset.resize_interpolation)
        record, finding = (self.record(job), self.finding(job)) if self.index is not None else ({}, ("", ""))
        try:
            return _Decoded(job, record, finding, *views.render(picture.path, view, pictures.mask(job[1])))
        except BrokenPictureError:
            return _Decoded(job, record, finding)

    def encode(self, batch: Sequence[_Decoded]) -> None:
        """Encode pictures of one size together."""
        self.cache.broken.update(decoded.job for decoded in batch if decoded.pixels is None)
        good = [decoded for decoded in batch if decoded.pixels is not None]
        if not good:
            return
        jobs = [decoded.job for decoded in good]
        pixels = torch.stack([decoded.pixels for decoded in good if decoded.pixels is not None])
        flips = self.cache.flips(*jobs[0])
        latents = [self._latents(jobs, pixels.flip(-1) if flipped else pixels, flipped) for flipped in flips]
        for row, decoded in enumerate(good):
            self._keep(decoded, {flipped: latents[flipped][row] for flipped in flips})

    def record(self, job: Job) -> Record:
        """Return what a picture's latents are made from."""
        dataset, index = job
        pictures = self.cache.sets[dataset]
        record = {"picture": store.picture_state(pictures.pictures.paths[index]), **self._constant(job)}
        if (mask := pictures.mask(index)) and mask.path:
            record[_MASK] = store.picture_state(mask.path)
        return record

    def finding(self, job: Job) -> tuple[str, str]:
        """Return what the index is asked about a file, and what it says if the latents are valid.

        That is `record` and the names of the arrays, for all pictures alike but for what differs in each.
        """
        dataset, index = job
        pictures = self.cache.sets[dataset]
        table, mask = pictures.pictures, pictures.mask(index)
        alike = (dataset, table.subsets[index], pictures.size(index), table.train_size(index), mask is None)
        if alike not in self._recipes:
            self._recipes[alike] = self._recipe(job)
        kind, recipe = self._recipes[alike]
        masked = store.picture_state(mask.path) if mask and mask.path else ""
        return kind, f"{store.picture_state(table.paths[index])}{masked} {recipe}"

    def _recipe(self, job: Job) -> tuple[str, str]:
        names = [self.cache.name(*job, flipped) for flipped in self.cache.flips(*job)]
        recipe = json.dumps([*names, self.cache.mask_name(*job), self._constant(job)])
        return f"latents{self.cache.key_suffix(*job)}", hashlib.sha256(recipe.encode()).hexdigest()[:32]

    def _constant(self, job: Job) -> Record:
        """Return the part of the record that many pictures share."""
        pictures = self.cache.sets[job[0]]
        fit, interpolation = pictures.fit(job[1]), pictures.subset(job[1]).resize_interpolation
        mask = pictures.mask(job[1])
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

    def _keep(self, decoded: _Decoded, latents: dict[bool, Tensor]) -> None:
        job, mask = decoded.job, decoded.mask
        if self.cache.memory is not None:
            for flipped, tensor in latents.items():
                self.cache.memory.put((*job, flipped), tensor)
            if mask is not None:
                self.cache.memory.put((*job, _MASK), masks.shrunk(mask, self.cache.size(*job)))
            return
        pictures, suffix = self.cache.sets[job[0]], self.cache.key_suffix(*job)
        stored = latents
        if not self.cache.format.is_scaled:
            stored = {flipped: self.cache.space.raw(tensor) for flipped, tensor in latents.items()}
        arrays: Arrays = {self.cache.name(*job, flipped): store.as_array(x) for flipped, x in stored.items()}
        if (name := self.cache.mask_name(*job)) and mask is not None:
            kept = mask if name.startswith(_ALPHA) else masks.shrunk(mask, self.cache.size(*job))
            arrays[name] = store.as_array(kept[0])
        arrays |= _framing(pictures.size(job[1]), pictures.fit(job[1]), suffix)
        arrays[store.RECORD + suffix] = store.record_array(decoded.record)
        path = self.cache.path(*job)
        # What else a file holds that is older than its picture is stale, and must not look fresh from now on.
        is_fresh = path.exists() and store.is_newer(path, pictures.pictures.paths[job[1]])
        (store.update if is_fresh else store.write)(path, arrays)
        if self.index is not None:
            kind, finding = decoded.finding
            self.index.learn(kind, str(path), finding, is_own=True)


def _framing(size: Size, fit: Fit, suffix: str) -> Arrays:
    """Return what sd-scripts stores beside latents: size of the picture (width, height) and its crop box."""
    return {
        "original_size" + suffix: np.array(size, dtype=np.int64),
        "crop_ltrb" + suffix: np.array(crop_box(fit.bucket, size), dtype=np.float64),
    }


@dataclass
class _Checker:
    """Tells which latents on disk are missing, broken or made from something else."""

    encoder: _Encoder
    family: Family
    index: Index
    trust: bool
    num_adopted: int = 0

    def missing(self, jobs: Sequence[Job]) -> list[Job]:
        found = [job for job in jobs if not self._is_valid(job)]
        if self.num_adopted:
            logger.info(
                "%d latent caches without a record (sd-scripts writes none) fit, are newer than the pictures "
                "and are used; delete them if they come from another VAE",
                self.num_adopted,
            )
        return found

    def _is_valid(self, job: Job) -> bool:
        file = self.encoder.cache.file(*job)
        if self.trust:
            return os.path.exists(file)
        kind, finding = self.encoder.finding(job)
        known = self.index.recall(kind, file)
        if known in (finding, _ADOPTED + finding):
            self.num_adopted += known != finding
            return True
        num_adopted = self.num_adopted
        try:
            is_valid = self._holds(job, Path(file)) or self._took_over(job, file)
        except BrokenCacheError as error:
            logger.warning("%s is damaged (%s) and made again", file, error)
            return False
        if is_valid:
            self.index.learn(kind, file, (_ADOPTED if self.num_adopted > num_adopted else "") + finding)
        return is_valid

    def _took_over(self, job: Job, file: str) -> bool:
        """Give latents that still have their older name the name of today; return whether there were any."""
        older = self.encoder.cache.older_file(*job)
        if older is None or os.path.exists(file) or not os.path.exists(older):
            return False
        if not self._holds(job, Path(older)):
            return False
        with atomic_file(Path(file)) as copy, open(older, "rb") as source:
            shutil.copyfileobj(source, copy)
        return True

    def _holds(self, job: Job, path: Path) -> bool:
        cache = self.encoder.cache
        shape = (self.family.latents.channels, *cache.size(*job))
        wanted: dict[str, tuple[int, ...]] = {
            cache.name(*job, flipped): shape for flipped in cache.flips(*job)
        }
        if mask := cache.mask_name(*job):
            height_first = cache.sets[job[0]].fit(job[1]).bucket[::-1]
            wanted[mask] = height_first if mask.startswith(_ALPHA) else cache.size(*job)
        there, record = store.contents(path, cache.key_suffix(*job))
        if not wanted.keys() <= there:
            return False
        if record is not None:
            wanted_record = self.encoder.record(job)
            # A mask beside the picture changes no latents: who needs none takes those made with one.
            without = {name: value for name, value in record.items() if name != _MASK}
            return wanted_record in (record, without)
        return self._adopt(job, path, wanted)

    def _adopt(self, job: Job, path: Path, wanted: dict[str, tuple[int, ...]]) -> bool:
        cache = self.encoder.cache
        fits = all(array.shape == wanted[name] for name, array in store.read(path, wanted).items())
        adopted = fits and store.is_newer(path, cache.sets[job[0]].pictures.paths[job[1]])
        self.num_adopted += adopted
        return adopted
