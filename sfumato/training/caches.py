"""Caches filled as a run's options say: before the first step, or ahead of training altogether."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.config.caching import CachingConfig
from sfumato.config.run import Run
from sfumato.data.dataset import TrainingSet
from sfumato.models.family import VAE, Family, Parts
from sfumato.training.distributed import Processes


def sets_of(training_set: TrainingSet) -> list[TrainingSet]:
    """Return the pictures that are trained, and those that are held back if there are any."""
    held_back = training_set.validation
    return [training_set] if held_back is None else [training_set, held_back]


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
