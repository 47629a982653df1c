"""Latents and captions encoded ahead of training, into the files beside the images that it looks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from sfumato.caching.latents import require_constant_images
from sfumato.caching.texts import require_cacheable_captions
from sfumato.config.rules.strictness import is_strict
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.tools.preparation import PrecachingConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.config import blueprint
from sfumato.log import counted
from sfumato.models.interface.family import VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.models.registry.families import family_for
from sfumato.nn.precision import dtype_named
from sfumato.training.core import distributed
from sfumato.training.core.distributed import Processes
from sfumato.training.core.precision import Precision, for_device, precision_for
from sfumato.training.run.caches import cache_captions, cache_images, captions_at_once, check_places

logger = logging.getLogger(__name__)


def cache_latents(run: Run) -> None:
    """Encode the images of a run's data into files beside them.

    Raises:
        UserError: something is wrong that the user can mend, mostly before any weight is loaded.
    """
    with _workplace(run, (VAE,)) as place:
        require_constant_images(place.training_set)
        place.check(latents=True)
        cache_images(place.config, place.training_set, place.family, place.parts, place.processes)
        logger.info("latents of %s are in files", counted(place.num_images, "image"))


def cache_texts(run: Run) -> None:
    """Encode the captions of a run's data with every text encoder, into files beside the images.

    Raises:
        UserError: something is wrong that the user can mend, mostly before any weight is loaded.
    """
    encoders = tuple(family_for(run).text_outputs)
    with _workplace(run, encoders) as place:
        require_cacheable_captions(place.training_set, to_disk=True)
        place.check(latents=False)
        tools = place.family, place.parts, place.processes
        cache_captions(place.config, place.training_set, *tools, encoders, captions_at_once(run))
        logger.info("encoded captions of %s are in files", counted(place.num_images, "image"))


@dataclass(frozen=True)
class _Workplace:
    config: CachingConfig
    family: Family
    training_set: TrainingSet
    parts: Parts
    processes: Processes

    def check(self, *, latents: bool) -> None:
        """Raise UserError if the files of latents, or else those of captions, cannot be written."""
        if self.processes.is_first:
            remedy = "let the folder be written to, or use a copy of it"
            check_places(self.training_set, self.family, remedy, latents=latents, texts=not latents)

    @property
    def num_images(self) -> int:
        return sum(len(found.images) for found in self.training_set.sets)


@contextmanager
def _workplace(run: Run, parts: Sequence[str]) -> Iterator[_Workplace]:
    """Yield what encoding takes, read and checked, under autocast; nothing heavy is loaded yet."""
    run = run.with_sections(_to_disk(run))
    processes = distributed.start(run[DistributedConfig])
    try:
        run, overridden = for_device(run, processes.device)
        for line in overridden:
            logger.warning(line)
        precision = precision_for(run[PrecisionConfig], processes.device)
        family = family_for(run)
        family.check(parts)
        multiple = family.latents.downscale * family.latents.patch
        stored = family.caches
        plans = blueprint.plans(
            run,
            size_multiple=multiple,
            takes_latents=stored.has_latents_alone,
            latents_ending=stored.latents,
        )
        training_set = dataset.read(plans, run[LengthConfig].seed or 0, strict=is_strict(run))
        loaded = Parts(
            family,
            processes.device,
            _dtypes(run, parts, precision),
            keeps_memory=run[MemoryConfig].highvram,
        )
        with precision.autocast():
            yield _Workplace(run[CachingConfig], family, training_set, loaded, processes)
    finally:
        processes.finish()


def _to_disk(run: Run) -> CachingConfig:
    """Return how caches are filled; both kinds go to files, whether or not that was said."""
    caching = run[CachingConfig]
    return replace(
        caching,
        cache_latents=True,
        cache_latents_to_disk=True,
        cache_text_encoder_outputs=True,
        cache_text_encoder_outputs_to_disk=True,
        skip_cache_check=caching.skip_cache_check or run[PrecachingConfig].skip_existing,
    )


def _dtypes(run: Run, parts: Sequence[str], precision: Precision) -> dict[str, torch.dtype]:
    """Return the dtype of each part: that of training, or its own where one is asked for."""
    kept = (VAE,) if run[ModelConfig].no_half_vae else ()
    asked = {part: run.values().get(f"{part}_dtype") for part in parts}
    return {
        part: dtype_named(name, f"--{part}_dtype") if name else precision.frozen(part, (), kept)
        for part, name in asked.items()
    }
