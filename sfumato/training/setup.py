"""Put a run together: all that can be wrong is found first, then weights are loaded and trained."""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato import seeds
from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts, require_constant_captions
from sfumato.config.caching import CachingConfig
from sfumato.config.distributed import DistributedConfig
from sfumato.config.file import FileConfig
from sfumato.config.length import LengthConfig
from sfumato.config.loader import LoaderConfig
from sfumato.config.model import ModelConfig
from sfumato.config.optimizer import OptimizerConfig
from sfumato.config.precision import PrecisionConfig
from sfumato.config.public import public_values, to_toml
from sfumato.config.run import Run
from sfumato.config.saving import SavingConfig
from sfumato.config.schedule import ScheduleConfig
from sfumato.config.tracking import TrackingConfig
from sfumato.data import blueprint, dataset
from sfumato.data.collate import Batch
from sfumato.data.dataset import TrainingSet
from sfumato.data.loader import Loader
from sfumato.errors import UserError
from sfumato.models.family import DENOISER, VAE, Family, Parts, family_for
from sfumato.training import distributed, metadata, optimizers, precision, saving, schedulers, trackers
from sfumato.training.distributed import Processes
from sfumato.training.interrupt import Interrupt
from sfumato.training.loop import Loop, Observer
from sfumato.training.objective import settings_without_effect
from sfumato.training.optimizers import OptimizerPlan
from sfumato.training.plan import Plan, Step, plan_for
from sfumato.training.precision import Precision
from sfumato.training.progress import Bar, FiniteGuard
from sfumato.training.saving import Names, Rhythm, Saver
from sfumato.training.trainables import Method, ParameterGroup, Trainable, method_for
from sfumato.training.update import Update

logger = logging.getLogger(__name__)


def train(run: Run) -> None:
    """Train as `run` says.

    Raises:
        UserError: something is wrong that the user can mend; mostly before any weight is loaded.
    """
    processes = distributed.start(run[DistributedConfig])
    try:
        Session.prepare(run, processes).train()
    finally:
        processes.finish()


@dataclass(frozen=True)
class Session:
    """A run that was found to be possible; nothing heavy is in memory yet."""

    run: Run
    processes: Processes
    family: Family
    method: Method
    precision: Precision
    optimizer: OptimizerPlan
    training_set: TrainingSet
    plan: Plan
    names: Names
    rhythm: Rhythm
    seed: int
    started_at: float

    @classmethod
    def prepare(cls, run: Run, processes: Processes) -> Session:
        """Check everything that needs no weights: options, headers, pictures, disk space."""
        started_at = time.time()
        names = saving.names_for(run[SavingConfig])
        trackers.check(run[TrackingConfig])
        policy = precision.precision_for(run[PrecisionConfig], processes.device)
        optimizer = optimizers.plan(run[OptimizerConfig])
        if not (optimizer.is_schedule_free or optimizer.relative_step):
            schedulers.check(run[ScheduleConfig])
        seed = _seed(run[LengthConfig].seed, processes)
        family = family_for(run)
        family.check((DENOISER, VAE, *family.text_outputs))
        method = method_for(run, family)
        num_bytes = method.check()
        _complain(settings_without_effect(run), run[FileConfig].strict)
        multiple = family.latents.downscale * family.latents.patch
        plans = blueprint.plans(run, size_multiple=multiple)
        training_set = dataset.read(plans, seed, strict=run[FileConfig].strict)
        plan = plan_for(run[LengthConfig], training_set.num_batches, processes.world)
        training_set.max_steps = plan.num_steps
        rhythm = saving.rhythm_for(run[SavingConfig], plan)
        if processes.is_first:
            saving.check_output(names, num_bytes * rhythm.count(plan))
        session = cls(
            run,
            processes,
            family,
            method,
            policy,
            optimizer,
            training_set,
            plan,
            names,
            rhythm,
            seed,
            started_at,
        )
        if session.cached_encoders:
            require_constant_captions(training_set)
        session.report()
        return session

    @property
    def cached_encoders(self) -> list[str]:
        """Text encoders whose outputs are computed once, before training."""
        if not self.run[CachingConfig].cache_text_encoder_outputs:
            return []
        return [name for name in self.family.text_outputs if name not in self.method.trained_encoders]

    def report(self) -> None:
        """Say what will be trained on, and for how long."""
        data, plan = self.training_set, self.plan
        logger.info(
            "%d pictures (with repeats) and %d regularisation pictures, %d batches an epoch, "
            "%d epochs, %d steps, seed %d",
            data.num_train_images,
            data.num_reg_images,
            plan.num_batches,
            plan.num_epochs,
            plan.num_steps,
            self.seed,
        )

    def train(self) -> None:
        """Load, cache, train, save."""
        parts = self._parts()
        self._fill_caches(parts)
        torch.manual_seed(seeds.derive("initial weights", self.seed))
        live = [name for name in self.family.text_outputs if name not in self.cached_encoders]
        trainable = self.method.build(parts, self.precision, live)
        self._run(trainable)

    def _parts(self) -> Parts:
        kept = (VAE,) if self.run[ModelConfig].no_half_vae else ()
        names = (DENOISER, VAE, *self.family.text_outputs)
        dtypes = {name: self.precision.frozen(name, DENOISER, kept) for name in names}
        return Parts(self.family, self.processes.device, dtypes)

    def _fill_caches(self, parts: Parts) -> None:
        config, processes = self.run[CachingConfig], self.processes
        shared: dict[str, Any] = {
            "trust": config.skip_cache_check,
            "rank": processes.rank,
            "world": processes.world,
            "wait": processes.wait,
        }
        with self.precision.autocast():
            if config.cache_latents:
                fill_latents(
                    self.training_set,
                    self.family,
                    parts,
                    batch_size=config.vae_batch_size,
                    to_disk=config.cache_latents_to_disk,
                    **shared,
                )
                parts.release(VAE)
            if self.cached_encoders:
                fill_texts(
                    self.training_set,
                    self.family,
                    parts,
                    self.cached_encoders,
                    batch_size=config.text_encoder_batch_size or 1,
                    to_disk=config.cache_text_encoder_outputs_to_disk,
                    **shared,
                )
                parts.release(*self.cached_encoders)

    def _run(self, trainable: Trainable) -> None:
        groups = trainable.groups()
        update = self._update(groups)
        guard = FiniteGuard()
        observers = self._observers(trainable, groups, guard)
        interrupt = Interrupt()
        loop = Loop(trainable, update, self.plan, self._batches(), self.seed, observers, 0, interrupt)
        try:
            with interrupt.listening():
                last = loop.run()
        finally:
            for observer in observers:
                getattr(observer, "close", lambda: None)()
        self._say_what_was_skipped()
        if not last.is_last:
            self._leave_early(observers, last, interrupt)

    def _update(self, groups: Sequence[ParameterGroup]) -> Update:
        config = self.run[OptimizerConfig]
        rate = config.learning_rate
        optimizer = self.optimizer.build(
            [
                {"params": g.parameters, "lr": rate if g.learning_rate is None else g.learning_rate}
                for g in groups
            ],
            rate,
        )
        scheduler = schedulers.build(
            self.run[ScheduleConfig], optimizer, self.optimizer, rate, self.plan.num_steps
        )
        scaler = torch.amp.GradScaler(self.processes.device.type) if self.precision.needs_scaler else None
        return Update(optimizer, scheduler, self.processes, config.max_grad_norm, scaler)

    def _observers(
        self, trainable: Trainable, groups: Sequence[ParameterGroup], guard: FiniteGuard
    ) -> list[Observer]:
        data = self.training_set
        pictures_per_epoch = sum(len(items) for s in data.sets for items in s.buckets.values())
        bar = Bar(self.plan, pictures_per_epoch / self.plan.steps_per_epoch)
        observers: list[Observer] = [guard, bar]
        if not self.processes.is_first:
            return observers
        stem = self.names.last().with_suffix("")
        (stem.parent / f"{stem.name}.config.toml").write_text(to_toml(public_values(self.run)), "utf-8")
        names = [group.name for group in groups]
        observers.append(trackers.MetricsFile(stem.parent / f"{stem.name}.metrics.jsonl", names, 0))
        started = trackers.start(self.run[TrackingConfig], "network_train", public_values(self.run))
        observers.append(trackers.Recorder(started, names, self.plan.steps_per_epoch))

        def remember(path: Path) -> None:
            guard.last_save = f"the last good save is {path}"

        observers.append(Saver(self.names, self.rhythm, self.plan, self._save_with(trainable), remember))
        return observers

    def _save_with(self, trainable: Trainable) -> Any:
        # Hashing a 24 GB base takes a minute, so it happens beside the first steps.
        record = ThreadPoolExecutor(1).submit(self._metadata)

        def save(path: Path, step: Step) -> None:
            trainable.save(path, record.result() | metadata.at_save(step))

        return save

    def _metadata(self) -> dict[str, str]:
        rate = self.run[OptimizerConfig].learning_rate
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

    def _batches(self) -> Iterator[Batch]:
        config = self.run[LoaderConfig]
        loader = Loader(
            self.training_set,
            num_workers=_num_workers(config.max_data_loader_n_workers),
            persistent=config.persistent_data_loader_workers,
            pin=self.processes.device.type == "cuda",
        )
        for epoch in range(1, self.plan.num_epochs + 1):
            plans = self.training_set.batches(epoch, num_per_step=self.plan.group)
            mine = [
                plans[position]
                for step in self.plan.steps_of(epoch)
                for position, _ in step.of_process(self.processes.rank, self.processes.world)
            ]
            yield from loader(mine)

    def _say_what_was_skipped(self) -> None:
        for path, times in self.training_set.skipped.items():
            logger.warning("%s could not be decoded and was replaced %d times", path, times)

    def _leave_early(self, observers: Sequence[Observer], last: Step, interrupt: Interrupt) -> None:
        for saver in (o for o in observers if isinstance(o, Saver)):
            path = saver.save_interrupted(last)
            raise UserError(
                f"{interrupt.name} ended the run after step {last.number}; its weights are in {path}"
            )


def _complain(lines: Sequence[str], strict: bool) -> None:
    if lines and strict:
        raise UserError("; ".join(lines))
    for line in lines:
        logger.warning(line)


def _seed(given: int | None, processes: Processes) -> int:
    if given is not None:
        return given
    chosen = torch.tensor(random.SystemRandom().randint(0, 2**32 - 1), device=processes.device)
    if processes.world > 1:
        torch.distributed.broadcast(chosen, src=0)
    return int(chosen)


def _num_workers(asked: int) -> int:
    return min(asked, os.cpu_count() or 1)
