"""Latents computed once instead of in every step, in memory or in files beside the images."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

from sfumato import log
from sfumato.caching import store
from sfumato.caching.encoding import Decoded, Encoder
from sfumato.caching.latent_cache import Job, LatentCache
from sfumato.caching.memory import MemoryStore
from sfumato.caching.staleness import Checker
from sfumato.checkpoints.write_behind import behind
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.images.buckets import Size
from sfumato.errors import UserError
from sfumato.models.interface.family import VAE, Family
from sfumato.models.interface.parts import Parts

VARYING = ("color_aug", "random_crop", "face_crop_aug_range")
"""Settings of a subset that make an image another one each time, beside mirroring."""

_DECODERS = min(4, os.cpu_count() or 1)
_BATCHES_AHEAD = 2

logger = logging.getLogger(__name__)


def require_constant_images(training_set: TrainingSet) -> None:
    """Raise UserError if images vary, so that their latents cannot be computed once.

    Of an image that is partly repainted, the rest is encoded too, and that is another one each time.
    """
    if any(image_set.plan.train_inpainting for image_set in training_set.sets):
        raise UserError(
            "--cache_latents excludes train_inpainting, which a data set asks for: what masks leave of an "
            "image is another one each time; leave one of them out"
        )
    for subset in (subset for image_set in training_set.sets for subset in image_set.plan.subsets):
        for name in VARYING:
            if getattr(subset, name):
                raise UserError(
                    f"--cache_latents excludes {name}, which {subset.source} asks for: "
                    "cached images cannot vary; leave one of them out"
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
    """Encode every image that has no valid latents yet, and let the training set load latents.

    The VAE is not loaded if nothing is missing. The posterior's noise is a function of the images encoded
    together (by name, size and mirroring), so it does not depend on processes or on what is cached already.

    Args:
        batch_size: images encoded together.
        to_disk: keep files beside the images; processes share the work. Otherwise each keeps all in memory.
        trust: take existing files as valid without opening them.
        rank, world: this process among all.
        wait: called when this process's part of the files is done; returns when that of all is.
    """
    cache = LatentCache(training_set.sets, family.caches, family.latents, None if to_disk else MemoryStore())
    encoder = Encoder(cache, family, parts, "" if trust else store.model_identity(family.source(VAE)))
    try:
        if to_disk:
            encoder.index = training_set.index
            if training_set.has_shared_stems:
                _require_one_content_per_file(cache)
            jobs = Checker(encoder, family, training_set.index, trust).missing(rank, world)
        else:
            jobs = list(cache.jobs())
        if jobs:
            _encode_all(encoder, jobs, batch_size)
    finally:
        training_set.index.save()
    for dataset, index in sorted(cache.broken):
        logger.warning("%s could not be decoded and is left out", cache.sets[dataset].images.paths[index])
    if cache.memory is not None:
        cache.memory.pack()
    wait()
    training_set.latents = cache
    return cache


def _encode_all(encoder: Encoder, jobs: Sequence[Job], batch_size: int) -> None:
    with (
        log.progress(total=len(jobs), unit="image", title="encoding images") as bar,
        ThreadPoolExecutor(_DECODERS, "decoder") as pool,
        behind(encoder.keep) as keep,  # files are written while the next images are encoded
    ):
        for batch in _ahead(pool, encoder.decode, _batches(encoder.cache, jobs, batch_size)):
            keep(encoder.encode(batch))
            bar.update(len(batch))


def _ahead(
    pool: Executor, decode: Callable[[Job], Decoded], batches: Iterable[Sequence[Job]]
) -> Iterator[list[Decoded]]:
    """Yield the decoded images of each batch while the next ones are being decoded."""
    waiting: deque[list[Future[Decoded]]] = deque()
    for batch in batches:
        waiting.append([pool.submit(decode, job) for job in batch])
        if len(waiting) > _BATCHES_AHEAD:
            yield [future.result() for future in waiting.popleft()]
    for futures in waiting:
        yield [future.result() for future in futures]


def _require_one_content_per_file(cache: LatentCache) -> None:
    """Raise UserError if two images, sizes, filters or masks would have latents of one name in a file."""
    found: dict[tuple[Path, str, str], object] = {}
    for job in cache.jobs():
        path, suffix, image_set = cache.path(*job), cache.key_suffix(*job), cache.sets[job[0]]
        mask = image_set.mask(job[1])
        contents: dict[str, object] = {
            "images": image_set.images.paths[job[1]],
            "sizes": cache.size(*job),
            "filters": image_set.subset(job[1]).resize_interpolation,
            **({"masks": mask.path} if mask and mask.path else {}),
        }
        for kind, content in contents.items():
            if found.setdefault((path, suffix, kind), content) != content:
                raise UserError(
                    f"{path} cannot hold latents of two {kind}, which this run asks for; use --cache_latents "
                    "without --cache_latents_to_disk, or copies of the images under other names"
                )


def _batches(cache: LatentCache, jobs: Sequence[Job], batch_size: int) -> Iterator[list[Job]]:
    by_size: dict[tuple[Size, bool], list[Job]] = {}
    for dataset, index in jobs:
        image_set = cache.sets[dataset]
        key = (image_set.fit(index).bucket, image_set.subset(index).flip_aug)
        by_size.setdefault(key, []).append((dataset, index))
    for alike in by_size.values():
        yield from (alike[at : at + batch_size] for at in range(0, len(alike), batch_size))
