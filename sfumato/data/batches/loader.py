"""Batches loaded ahead of the training loop, in this process or by workers; the batches are the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from threading import Thread
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch.utils.data import DataLoader, Dataset

from sfumato import console
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.fingerprint import Fingerprint
from sfumato.data.batches.order import BatchPlan, EpochPlan
from sfumato.errors import UserError


class TrainingData(Protocol):
    """What a run is trained on: folders of images (`TrainingSet`), or what a class makes (`UserSet`).

    Attributes:
        validation: images that are not trained but measured, if there are any.
        skipped: paths of images that turned out to be broken when they were loaded, with how often.
        max_steps: length of the run in optimizer steps; set it before loading.
    """

    validation: TrainingSet | None
    skipped: dict[str, int]
    max_steps: int

    @property
    def num_train_images(self) -> int:
        """Images in an epoch that are not regularisation images, repeats counted."""
        ...

    @property
    def num_reg_images(self) -> int:
        """Regularisation images."""
        ...

    @property
    def num_showings(self) -> int:
        """Images in an epoch of either kind, repeats counted."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, over all processes."""
        ...

    def batches(self, epoch: int, *, num_per_step: int = 1) -> EpochPlan:
        """Return the batches of an epoch (counted from 1) in order."""
        ...

    def fingerprint(self) -> Fingerprint:
        """Return digests by which another run tells whether it has the same data."""
        ...

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """Load one batch."""
        ...


class Loader:
    """Loads planned batches, epoch after epoch, with the same workers if they are persistent.

    Caches and `max_steps` of the training set must be in place before the first batch: workers copy them.
    """

    def __init__(
        self, training_set: TrainingData, *, num_workers: int = 0, persistent: bool = False, pin: bool = False
    ) -> None:
        """Prepare the loader; workers start with the first batch.

        Args:
            num_workers: processes that load; 0 loads in this one.
            persistent: keep the workers between epochs. Where they cannot be forked they are kept anyway:
                each imports PyTorch and gets a copy of the data set, which takes many seconds.
            pin: hand out batches in page-locked memory (for CUDA).
        """
        forks = sys.platform == "linux"
        self._training_set = training_set
        self._plans = _Plans()
        self._loader = DataLoader(
            cast("Dataset[Batch]", _Loading(training_set)),
            sampler=self._plans,
            batch_size=None,
            num_workers=num_workers,
            collate_fn=cast("Any", _as_is),
            pin_memory=pin,
            persistent_workers=num_workers > 0 and (persistent or not forks),
            worker_init_fn=_begin_work,
            # Workers share the training set's memory; newer Pythons would start each with a copy.
            multiprocessing_context=("fork" if forks else "spawn") if num_workers else None,
            # Otherwise each epoch would draw from the global generator, and training would depend on it.
            generator=torch.Generator(),
        )

    def __call__(self, plans: Sequence[BatchPlan]) -> Iterator[Batch]:
        """Yield the batch of each plan, in order; a resumed run leaves out the plans it has done.

        Raises:
            UserError: a batch cannot be loaded.
            RuntimeError: a worker died; see `is_worker_death`.
        """
        self._plans.plans = plans
        for batch in self._loader:
            if isinstance(batch, UserError):
                raise batch
            for path in batch.skipped:
                self._training_set.skipped[path] = self._training_set.skipped.get(path, 0) + 1
            yield batch


def is_worker_death(error: Exception) -> bool:
    """Whether this is how torch says that a loading process is no more; it may say so at any moment."""
    return str(error).startswith("DataLoader worker (pid")


@dataclass(frozen=True)
class _Loading:
    """Hand a user's mistake over as a value: torch would wrap its one line in the worker's traceback."""

    training_set: TrainingData

    def __getitem__(self, plan: BatchPlan) -> Batch | UserError:
        try:
            return self.training_set[plan]
        except UserError as error:
            return error


def _begin_work(_worker: int) -> None:
    """Outlive what reaches every process of a terminal, Ctrl-C and its end; end quietly at a SIGTERM.

    The run then finishes its step and saves, instead of failing in the middle because a worker is gone. With
    a run that is killed a worker ends: in the middle of handing over a batch, it would wait for ever.
    """
    if run := multiprocessing.parent_process():
        Thread(target=_end_after, args=(run,), daemon=True).start()
    console.keep_alive()
    for name in ("SIGINT", "SIGHUP", "SIGBREAK"):  # the last two are POSIX's and Windows' own
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)


def _end_after(run: BaseProcess) -> None:
    run.join()
    os._exit(0)


def _end(_number: int, _frame: FrameType | None) -> None:
    os._exit(0)


class _Plans:
    """What the DataLoader calls a sampler: the keys of an epoch."""

    def __init__(self) -> None:
        self.plans: Sequence[BatchPlan] = ()

    def __iter__(self) -> Iterator[BatchPlan]:
        return iter(self.plans)

    def __len__(self) -> int:
        return len(self.plans)


def _as_is(batch: Batch) -> Batch:
    return batch
