"""Caches filled as a run's options say: before the first step, or ahead of training altogether."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfumato.caching.latent_cache import LatentCache
from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import TextCache, fill_texts
from sfumato.checkpoints.name_trial import try_file
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.dataset import TrainingSet
from sfumato.errors import UserError
from sfumato.models.interface.family import VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.training.core.distributed import Processes


def sets_of(training_set: TrainingSet) -> list[TrainingSet]:
    """Return the images that are trained, and the validation images if there are any."""
    held_back = training_set.validation
    return [training_set] if held_back is None else [training_set, held_back]


def check_places(
    training_set: TrainingSet, family: Family, remedy: str, *, latents: bool, texts: bool
) -> None:
    """Raise UserError if a folder does not take the cache files that its images still lack.

    Args:
        remedy: what to do then.
        latents, texts: which files will be written.
    """
    for images in sets_of(training_set):
        caches: list[LatentCache | TextCache] = []
        caches += [LatentCache(images.sets, family.caches, family.latents)] if latents else []
        caches += [TextCache(images.sets, family.caches.texts, ())] if texts else []
        for cache in caches:
            _try_longest_names(images, cache.path, remedy)


def _try_longest_names(training_set: TrainingSet, path: Callable[[int, int], Path], remedy: str) -> None:
    """Try the cache file with the longest name in each folder, unless the folder has all of them."""
    for dataset, image_set in enumerate(training_set.sets):
        longest: dict[str, tuple[int, int]] = {}
        for index, image in enumerate(image_set.images.paths):
            folder, _, name = image.rpartition(os.sep)
            longest[folder] = max(longest.get(folder, (0, 0)), (len(os.fsencode(name)), index))
        for folder, (_, index) in longest.items():
            refusal = _refusal(path(dataset, index), remedy)
            if refusal and not all(
                os.path.exists(path(dataset, other))
                for other, image in enumerate(image_set.images.paths)
                if image.rpartition(os.sep)[0] == folder
            ):
                raise refusal


def _refusal(path: Path, remedy: str) -> UserError | None:
    try:
        try_file(path, remedy)
    except UserError as refusal:
        return refusal
    return None


def cache_images(
    config: CachingConfig, training_set: TrainingSet, family: Family, parts: Parts, processes: Processes
) -> None:
    """Encode every image once, then let go of the autoencoder."""
    for images in sets_of(training_set):
        fill_latents(
            images,
            family,
            parts,
            batch_size=config.vae_batch_size,
            to_disk=config.cache_latents_to_disk,
            **_shared(config, processes),
        )
    parts.release(VAE)


def cache_captions(
    config: CachingConfig,
    training_set: TrainingSet,
    family: Family,
    parts: Parts,
    processes: Processes,
    encoders: Sequence[str],
    at_once: int,
) -> None:
    """Encode every caption once with these text encoders; they stay loaded, for previews.

    Args:
        at_once: captions encoded together.
    """
    for images in sets_of(training_set):
        fill_texts(
            images,
            family,
            parts,
            encoders,
            batch_size=at_once,
            to_disk=config.cache_text_encoder_outputs_to_disk,
            **_shared(config, processes),
        )


def captions_at_once(run: Run) -> int:
    """Return how many captions are encoded together."""
    return run[CachingConfig].text_encoder_batch_size or run[DatasetConfig].train_batch_size


def _shared(config: CachingConfig, processes: Processes) -> dict[str, Any]:
    return {
        "trust": config.skip_cache_check,
        "rank": processes.rank,
        "world": processes.world,
        "wait": processes.wait,
    }
