"""One run that was found to be possible: load, cache, train, save."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from sfumato import seeds
from sfumato.adapters.network.network import Network
from sfumato.caching.latents import require_constant_images
from sfumato.caching.texts import require_cacheable_captions
from sfumato.config.public import public_values, to_toml
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.loader import LoaderConfig
from sfumato.config.run.data.validation import ValidationConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader, TrainingData
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.training.core.distributed import LateVote, Processes
from sfumato.training.core.memory import Swap
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.precision import Precision
from sfumato.training.observers import trackers
from sfumato.training.observers.finite import FiniteGuard
from sfumato.training.observers.preview import PreviewObserver, Previews
from sfumato.training.observers.progress import Averages, Bar
from sfumato.training.observers.saving import Keeping, Names, Saver
from sfumato.training.observers.validation import ValidationObserver, rhythm_for
from sfumato.training.run.caches import cache_captions, cache_images, check_places
from sfumato.training.run.ending import run_or_save
from sfumato.training.run.interrupt import Interrupt
from sfumato.training.run.loop import Loop, Observer
from sfumato.training.run.weight_updates import update_for
from sfumato.training.state import metadata
from sfumato.training.state.resume import State, save_state
from sfumato.training.trainables import ParameterGroup, Trainable, TrainingMethod
from sfumato.training.update import schedulers
from sfumato.training.update.optimizer_step import WeightUpdate
from sfumato.training.update.optimizers import OptimizerPlan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSession:
    """Everything a run needs, checked; nothing heavy is in memory yet.

    Attributes:
        state: to resume from, or None.
        swap: blocks that wait in RAM, or None.
        finished: steps that count as done.
        started_at: Unix seconds.
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

    @cached_property
    def cached_encoders(self) -> list[str]:
        """Text encoders whose outputs are computed once, before training."""
        if not self.run[CachingConfig].cache_text_encoder_outputs:
            return []
        return [name for name in self.family.text_outputs if name not in self.method.trained_encoders]

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

    @property
    def _images(self) -> TrainingSet:
        """The folders of images that caches lie beside; options see to it that there are some."""
        assert isinstance(self.training_set, TrainingSet)
        return self.training_set

    def train(self) -> None:
        """Load, cache, train, save."""
        parts = self._parts()
        self._fill_caches(parts)
        torch.manual_seed(seeds.derive("initial weights", self.seed))
        trainable = self.method.build(parts, self.precision, self.live_encoders)
        update = self._update(parts, trainable.groups())
        if self.state is not None:
            update.stepping.recall()
            self.state.restore(trainable, update)
            logger.info("resuming after step %d", self.finished)
        self._run(parts, trainable, update)

    def _parts(self) -> Parts:
        kept = (VAE,) if self.run[ModelConfig].no_half_vae else ()
        trained = self.method.trained_parts
        names = (DENOISER, VAE, *self.family.text_outputs)
        # Encoders that run once need no room in the steps, and lose nothing.
        encoders = self.live_encoders if self.precision.fp8_encoders else ()
        dtypes = {name: self.precision.frozen(name, (DENOISER, *encoders), kept) for name in names}
        dtypes |= dict.fromkeys(trained, self.precision.trained)
        return Parts(
            self.family,
            self.processes.device,
            dtypes,
            change=self.method.base_change,
            keeps_memory=self.run[MemoryConfig].highvram,
            placed={DENOISER: self._place} if self.swap else {},
        )

    def _place(self, denoiser: nn.Module) -> None:
        assert self.swap is not None
        self.swap.place(denoiser, self.processes.device)

    def _fill_caches(self, parts: Parts) -> None:
        """Compute once what does not change, then let go of whatever computed it."""
        tools = self.family, parts, self.processes
        with self.precision.autocast():
            if self.run[CachingConfig].cache_latents:
                cache_images(self.run, self._images, *tools)
            if self.cached_encoders:
                cache_captions(self.run, self._images, *tools, self.cached_encoders)
            if self.previews is not None:
                trained = self.method.trained_encoders
                self.previews.encode(
                    parts, [name for name in self.family.text_outputs if name not in trained]
                )
            parts.release(*self.cached_encoders)

    def _update(self, parts: Parts, groups: Sequence[ParameterGroup]) -> WeightUpdate:
        blocks = self.family.blocks(DENOISER, parts[DENOISER])
        shared = self.run, self.optimizer, self.precision, self.processes
        recall = self.swap.recall if self.swap is not None else lambda: None
        num_steps = self.plan.num_steps
        return update_for(*shared, groups, blocks, num_steps=num_steps, seed=self.seed, recall=recall)

    def _run(self, parts: Parts, trainable: Trainable, update: WeightUpdate) -> None:
        guard = FiniteGuard(skips=self.run[OptimizerConfig].on_nonfinite == "skip")
        interrupt, vote = Interrupt(), LateVote(self.processes)
        saver = self._saver(trainable, update, guard) if self.processes.is_first else None
        observers = self._observers(trainable, guard, saver)
        network = getattr(trainable, "network", None)
        validation = self._validation(trainable, network, update, observers, interrupt)
        observers += [validation] if validation else []
        if self.previews is not None:
            shown = self.previews.observer(
                parts,
                network,
                self.names,
                self.precision,
                self.processes,
                evaluating=update.stepping.evaluating,
                should_stop=lambda: interrupt.is_asked,
            )
            observers.append(shown)
        loop = Loop(
            trainable,
            update,
            self.plan,
            self._batches(),
            self.seed,
            observers,
            self.finished,
            lambda: vote(interrupt.is_asked),
        )
        if validation is not None:
            validation.before = loop.catch_up
        if saver is not None:
            saver.before = loop.catch_up  # so that the figures of what is saved are checked, and recorded
        try:
            with interrupt.listening():
                for shown in (o for o in observers if isinstance(o, PreviewObserver) and not self.finished):
                    shown.at_first()
                run_or_save(loop, interrupt, saver, guard)
        finally:
            for observer in observers:
                getattr(observer, "close", lambda: None)()
            self._name_skipped()

    def _name_skipped(self) -> None:
        for data in (self.training_set, self.training_set.validation):
            for path, times in data.skipped.items() if data else ():
                logger.warning("%s could not be decoded and was replaced %s", path, counted(times, "time"))

    def _validation(
        self,
        trainable: Trainable,
        network: Network | None,
        update: WeightUpdate,
        observers: Sequence[Observer],
        interrupt: Interrupt,
    ) -> ValidationObserver | None:
        """Return what measures the loss of the validation images, if there are any."""
        held_back = self.training_set.validation
        if held_back is None:
            return None
        recorders = [o for o in observers if isinstance(o, trackers.MetricsFile | trackers.Recorder)]

        def record(step: Step, figures: Mapping[str, float]) -> None:
            for recorder in recorders:
                recorder.record(step, figures)

        return ValidationObserver(
            trainable,
            held_back,
            self._loader(held_back),
            rhythm_for(self.run[ValidationConfig]),
            self.processes,
            network,
            Averages(self.plan.steps_per_epoch),
            update.stepping.evaluating,
            record,
            should_stop=lambda: interrupt.is_asked,
        )

    def _observers(self, trainable: Trainable, guard: FiniteGuard, saver: Saver | None) -> list[Observer]:
        observers: list[Observer] = [guard, Bar(self.plan, self._images_per_step(), self.finished)]
        if saver is None:
            return observers
        self.names.settings().write_text(to_toml(public_values(self.run)), "utf-8")
        rates = [group.name for group in trainable.groups()]
        observers.append(trackers.MetricsFile(self.names.metrics(), rates, self.finished))
        started = trackers.start(self.run[TrackingConfig], self.method.project, public_values(self.run))
        observers.append(trackers.Recorder(started, rates, self.plan.steps_per_epoch))
        observers.append(saver)
        return observers

    def _images_per_step(self) -> float:
        return self.training_set.num_showings / self.plan.steps_per_epoch

    def _saver(self, trainable: Trainable, update: WeightUpdate, guard: FiniteGuard) -> Saver:
        save, keep = self._save_with(trainable, update, guard), self._save_state_with(trainable, update)
        return Saver(self.names, self.keeping, self.plan, save, keep, guard.remember)

    def _save_with(
        self, trainable: Trainable, update: WeightUpdate, guard: FiniteGuard
    ) -> Callable[[Path, Step], None]:
        # Hashing a 24 GB base takes a minute, so it happens beside the first steps.
        record = ThreadPoolExecutor(1).submit(self._metadata)
        at_save = metadata.at_save if self.method.is_recorded else lambda step: {}

        def save(path: Path, step: Step) -> None:
            with update.stepping.evaluating():
                guard.check_weights(step, trainable.tensors())
                trainable.save(path, record.result() | at_save(step))

        return save

    def _save_state_with(
        self, trainable: Trainable, update: WeightUpdate
    ) -> Callable[[Path, Path, Step], None]:
        record = {"seed": self.seed, "options": public_values(self.run)}

        is_same = trainable.file_holds_all and not self.optimizer.is_schedule_free

        def save(folder: Path, saved: Path, step: Step) -> None:
            update.stepping.recall()
            same = saved if is_same else None
            save_state(folder, trainable, update, step.number, step.epoch, record, same)

        return save

    def _metadata(self) -> dict[str, str]:
        rate = self.run[OptimizerConfig].learning_rate
        if not self.method.is_recorded:
            return {}
        return metadata.adapter_metadata(
            self.run,
            self.family,
            self.training_set,
            self.plan,
            seed=self.seed,
            world=self.processes.world,
            optimizer=self.optimizer.description,
            scheduler=schedulers.describe(self.run[ScheduleConfig], self.optimizer, rate),
            started_at=self.started_at,
        )

    def _loader(self, images: TrainingData) -> Loader:
        config = self.run[LoaderConfig]
        return Loader(
            images,
            num_workers=min(config.max_data_loader_n_workers, os.cpu_count() or 1),
            persistent=config.persistent_data_loader_workers,
            pin=self.processes.device.type == "cuda",
        )

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's batches from the first step that is to run, epoch after epoch."""
        processes, loader = self.processes, self._loader(self.training_set)
        for epoch in range(self.plan.step(self.finished + 1).epoch, self.plan.num_epochs + 1):
            plans = self.training_set.batches(epoch, num_per_step=self.plan.group)
            steps = self.plan.steps_of(epoch, self.finished)
            mine = [at for step in steps for at, _ in step.of_process(processes.rank, processes.world)]
            yield from loader(plans.select(mine))
