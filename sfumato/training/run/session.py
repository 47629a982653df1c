"""One run that was found to be possible, and what it is made of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from sfumato.caching.latents import require_constant_images
from sfumato.caching.texts import require_cacheable_captions
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.loader import LoaderConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader, TrainingData
from sfumato.errors import UserError
from sfumato.hub.uploading import Destination
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.training.core import encoders
from sfumato.training.core.distributed import Processes
from sfumato.training.core.memory import Swap
from sfumato.training.core.plan import Plan
from sfumato.training.core.precision import Precision
from sfumato.training.observers.preview import Previews
from sfumato.training.observers.saving import Keeping, Names
from sfumato.training.run.caches import cache_captions, cache_images, captions_at_once, check_places
from sfumato.training.run.weight_updates import update_for
from sfumato.training.state.resume import State, data_record
from sfumato.training.trainables import ParameterGroup, TrainingMethod
from sfumato.training.update.optimizer_step import WeightUpdate
from sfumato.training.update.optimizers import OptimizerPlan


@dataclass(frozen=True)
class TrainingSession:
    """Everything a run needs, checked; nothing heavy is in memory yet.

    Attributes:
        state: to resume from, or None.
        swap: blocks that wait in RAM, or None.
        finished: steps that count as done.
        started_at: Unix seconds.
        destination: of uploads, in the first process, or None.
    """

    run: Run
    processes: Processes
    family: Family
    method: TrainingMethod
    precision: Precision
    optimizer: OptimizerPlan
    training_set: TrainingData
    plan: Plan
    names: Names
    keeping: Keeping
    seed: int
    started_at: float
    state: State | None = None
    previews: Previews | None = None
    swap: Swap | None = None
    finished: int = 0
    destination: Destination | None = None

    @cached_property
    def cached_encoders(self) -> list[str]:
        """Text encoders whose outputs are computed once, before training."""
        return encoders.cached_encoders(self.run, self.family, self.method.trained_encoders)

    @property
    def live_encoders(self) -> list[str]:
        """Text encoders that run in every step."""
        return [name for name in self.family.text_outputs if name not in self.cached_encoders]

    def check_caching(self) -> None:
        """Raise UserError if images or captions that vary are to be encoded once."""
        if self.run[CachingConfig].cache_latents:
            require_constant_images(self._images)
        if self.run[CachingConfig].cache_text_encoder_outputs:
            if not self.cached_encoders:
                raise UserError(
                    "--cache_text_encoder_outputs: every text encoder is trained, so nothing can be cached; "
                    "drop it, or train fewer of them"
                )
            to_disk = self.run[CachingConfig].cache_text_encoder_outputs_to_disk
            require_cacheable_captions(self._images, to_disk=to_disk)
        if self.processes.is_first:
            self._check_cache_files(self.run[CachingConfig])

    def _check_cache_files(self, config: CachingConfig) -> None:
        latents = config.cache_latents_to_disk
        texts = config.cache_text_encoder_outputs_to_disk and bool(self.cached_encoders)
        if latents or texts:
            remedy = "let the folder be written to, or cache without _to_disk"
            check_places(self._images, self.family, remedy, latents=latents, texts=texts)

    @cached_property
    def data_record(self) -> dict[str, Any]:
        """What a state notes of the data; see `resume.data_record`."""
        return data_record(self.training_set, self.plan.group, self.processes.world)

    @property
    def _images(self) -> TrainingSet:
        """The folders of images that caches lie beside; options see to it that there are some."""
        assert isinstance(self.training_set, TrainingSet)
        return self.training_set

    def parts(self) -> Parts:
        """Return the parts of the model, each loaded when it is first asked for."""
        kept = (VAE,) if self.run[ModelConfig].no_half_vae else ()
        trained = self.method.trained_parts
        names = (DENOISER, VAE, *self.family.text_outputs)
        # Encoders that run once need no room in the steps, and lose nothing.
        eight_bit = self.live_encoders if self.precision.fp8_encoders else ()
        dtypes = {name: self.precision.frozen(name, (DENOISER, *eight_bit), kept) for name in names}
        dtypes |= encoders.dtypes_of(self.family, trained)
        dtypes |= dict.fromkeys(trained, self.precision.trained)
        return Parts(
            self.family,
            self.processes.device,
            dtypes,
            change=self.method.base_change,
            keeps_memory=self.run[MemoryConfig].highvram,
            placed={DENOISER: self._place} if self.swap else {},
            devices=encoders.devices_of(self.family, trained),
        )

    def _place(self, denoiser: nn.Module) -> None:
        assert self.swap is not None
        self.swap.place(denoiser, self.processes.device)

    def fill_caches(self, parts: Parts) -> None:
        """Compute once what does not change, then let go of whatever computed it."""
        config, tools = self.run[CachingConfig], (self.family, parts, self.processes)
        with self.precision.autocast():
            if config.cache_latents:
                cache_images(config, self._images, *tools)
            if self.cached_encoders:
                cache_captions(config, self._images, *tools, self.cached_encoders, captions_at_once(self.run))
            if self.previews is not None:
                trained = self.method.trained_encoders
                self.previews.encode(
                    parts, [name for name in self.family.text_outputs if name not in trained]
                )
            parts.release(*self.cached_encoders)

    def update(self, parts: Parts, groups: Sequence[ParameterGroup]) -> WeightUpdate:
        """Return what changes the weights of `groups`."""
        trained = self.method.trained_parts
        blocks = [block for part in trained for block in self.family.blocks(part, parts[part])]
        shared = self.run, self.optimizer, self.precision, self.processes
        recall = self.swap.recall if self.swap is not None else lambda: None
        num_steps = self.plan.num_steps
        return update_for(*shared, groups, blocks, num_steps=num_steps, seed=self.seed, recall=recall)

    def loader(self, images: TrainingData) -> Loader:
        """Return what loads batches of these images."""
        config = self.run[LoaderConfig]
        return Loader(
            images,
            num_workers=min(config.max_data_loader_n_workers, os.cpu_count() or 1),
            persistent=config.persistent_data_loader_workers,
            pin=self.processes.device.type == "cuda",
        )

    def batches(self) -> Iterator[Batch]:
        """Yield this process's batches from the first step that is to run, epoch after epoch."""
        processes, loader = self.processes, self.loader(self.training_set)
        for epoch in range(self.plan.step(self.finished + 1).epoch, self.plan.num_epochs + 1):
            plans = self.training_set.batches(epoch, num_per_step=self.plan.group)
            steps = self.plan.steps_of(epoch, self.finished)
            mine = [at for step in steps for at, _ in step.of_process(processes.rank, processes.world)]
            yield from loader(plans.select(mine))
