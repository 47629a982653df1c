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
from sfumato.config.run.run import Run
from sfumato.data.batches.dataset import TrainingSet
from sfumato.errors import UserError
from sfumato.models.interface.family import VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.training.core.distributed import Processes


def sets_of(training_set: TrainingSet) -> list[TrainingSet]:
    """Return the pictures that are trained, and those that are held back if there are any."""
    held_back = training_set.validation
    return [training_set] if held_back is None else [training_set, held_back]


def check_places(
    training_set: TrainingSet, family: Family, remedy: str, *, latents: bool, texts: bool
) -> None:
    """Raise UserError if a folder does not take the cache files that its pictures still lack.

    Args:
        remedy: what to do then.
        latents, texts: which files will be written.
    """
    for pictures in sets_of(training_set):
        caches: list[LatentCache | TextCache] = []
        caches += [LatentCache(pictures.sets, family.caches, family.latents)] if latents else []
        caches += [TextCache(pictures.sets, family.caches.texts, ())] if texts else []
        for cache in caches:
            _try_longest_names(pictures, cache.path, remedy)


def _try_longest_names(training_set: TrainingSet, path: Callable[[int, int], Path], remedy: str) -> None:
    """Try the cache file with the longest name in each folder, unless the folder has all of them."""
    for dataset, pictures in enumerate(training_set.sets):
        longest: dict[str, tuple[int, int]] = {}
        for index, picture in enumerate(pictures.pictures.paths):
            folder, _, name = picture.rpartition(os.sep)
            longest[folder] = max(longest.get(folder, (0, 0)), (len(os.fsencode(name)), index))
        for folder, (_, index) in longest.items():
            refusal = _refusal(path(dataset, index), remedy)
            if refusal and not all(
                os.path.exists(path(dataset, other))
                for other, picture in enumerate(pictures.pictures.paths)
                if picture.rpartition(os.sep)[0] == folder
            ):
                raise refusal


def _refusal(path: Path, remedy: str) -> UserError | None:
    try:
        try_file(path, remedy)
    except UserError as refusal:
        return refusal
    return None


def cache_pictures(
    run: Run, training_set: TrainingSet, family: Family, parts: Parts, processes: Processes
) -> None:
    """Encode every picture once, then let go of the autoencoder."""
    config = run[CachingConfig]
    for pictures in sets_of(training_set):
        fill_latents(
            pictures,
            family,
            parts,
            batch_size=config.vae_batch_size,
            to_disk=config.cache_latents_to_disk,
            **_shared(config, processes),
        )
    parts.release(VAE)


def cache_captions(
    run: Run,
    training_set: TrainingSet,
    family: Family,
    parts: Parts,
    processes: Processes,
    encoders: Sequence[str],
) -> None:
    """Encode every caption once with these text encoders; they stay loaded, for previews."""
    config = run[CachingConfig]
    for pictures in sets_of(training_set):
        fill_texts(
            pictures,
            family,
            parts,
            encoders,
            batch_size=config.text_encoder_batch_size or 1,
            to_disk=config.cache_text_encoder_outputs_to_disk,
            **_shared(config, processes),
        )


def _shared(config: CachingConfig, processes: Processes) -> dict[str, Any]:
    return {
        "trust": config.skip_cache_check,
        "rank": processes.rank,
        "world": processes.world,
        "wait": processes.wait,
    }
