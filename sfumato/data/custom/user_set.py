"""Batches of a user's own class (`--dataset_class package.module.Class`) instead of folders of images.

The class has `__len__`, the number of batches, and `__getitem__(index)`, which returns one batch as a
mapping; no base class is needed. Order, resuming and processes are as with folders: which batch comes when is
a function of seed and epoch, and so is what the class draws from the generators of Python, NumPy and torch.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from sfumato import seeds
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.fingerprint import Fingerprint, digest
from sfumato.data.batches.order import BatchPlan, EpochPlan, Showings, plan_epoch
from sfumato.data.custom.returned_batches import Geometry, batch_of
from sfumato.data.images.buckets import Size
from sfumato.errors import UserError, guest_code

_EVERYWHERE: Size = (0, 0)
"""The size of the one bucket that all batches share: they are not sorted by size."""

_HANDED_OVER = {"resolution": "resolution", "train_batch_size": "batch_size"}
_STILL_MEANT = ("max_token_length", "weighted_captions")
"""Options about captions that the text encoders listen to."""


@dataclass
class UserSet:
    """All batches of a run, made by a user's object.

    Attributes:
        name: of its class, for messages.
        batches_made: the object.
        seed: of the order, and of what the object draws.
        accepted: names of the arguments that its constructor took.
    """

    name: str
    batches_made: Any
    geometry: Geometry
    seed: int
    accepted: frozenset[str] = frozenset()
    validation: TrainingSet | None = None
    skipped: dict[str, int] = field(default_factory=dict)
    max_steps: int = 0

    @property
    def num_batches(self) -> int:
        """Batches in an epoch, over all processes."""
        return len(self.batches_made)

    @property
    def num_train_images(self) -> int:
        """Images in an epoch: what the object says, or else as if all batches were like the first."""
        return getattr(self.batches_made, "num_train_images", 0) or self.num_batches * len(self.example)

    @property
    def num_reg_images(self) -> int:
        """None: the object sets loss weights itself."""
        return 0

    @property
    def num_showings(self) -> int:
        """Images in an epoch of any kind."""
        return self.num_train_images

    @cached_property
    def example(self) -> Batch:
        """The first batch, by which the others are judged before training begins."""
        return self._load(1, 0)

    def batches(self, epoch: int, *, num_per_step: int = 1) -> EpochPlan:
        """Return the batches of an epoch (counted from 1) in order; see `order.plan_epoch`."""
        indices = Showings()
        for index in range(self.num_batches):
            indices.add(index, 1)
        return plan_epoch(
            [{_EVERYWHERE: indices}], [1], seed=self.seed, epoch=epoch, num_per_step=num_per_step
        )

    def fingerprint(self) -> Fingerprint:
        """Return the digest of the number of batches: the object alone knows its images."""
        return {"batches": digest([str(self.num_batches)])}

    def __getitem__(self, plan: BatchPlan) -> Batch:
        """Load one batch.

        Raises:
            UserError: what the object returns is no batch.
        """
        return self._load(plan.epoch, plan.items[0].image)

    def _load(self, epoch: int, index: int) -> Batch:
        getattr(self.batches_made, "set_current_epoch", lambda _epoch: None)(epoch)
        with _drawing_from(seeds.derive("user batch", self.seed, epoch, index)):
            example = self.batches_made[index]
        return batch_of(example, self.geometry, f"--dataset_class {self.name}, batch {index}")


def read(run: Run, geometry: Geometry, seed: int) -> UserSet:
    """Import the class, make one object of it and look at its first batch.

    Raises:
        UserError: there is no such class, it cannot be made with what it is given, or its batch is none.
    """
    config = run[DatasetConfig]
    assert config.dataset_class
    name = config.dataset_class
    offered = {
        "tokenizer": None,
        "max_token_length": run[CaptionConfig].max_token_length,
        "resolution": run[ImageConfig].size,
        "debug_dataset": False,
        "batch_size": config.train_batch_size,
        "seed": seed,
    }
    with guest_code(f"--dataset_class {name} failed", "mend it"):
        kind = _found(name)
        arguments = _accepted(kind, offered, name)
        made = UserSet(name, kind(**arguments), geometry, seed, frozenset(arguments))
        _check(made)
    return made


def _check(made: UserSet) -> None:
    """Raise UserError for an object without batches; a mistake in the first one shows here, too."""
    name = made.name
    missing = [method for method in ("__len__", "__getitem__") if not hasattr(made.batches_made, method)]
    if missing:
        raise UserError(f"--dataset_class {name} has no {missing[0]}; see docs/datasets.md for what it needs")
    if not made.num_batches:
        raise UserError(f"--dataset_class {name} is empty: its __len__ is 0; it counts batches")
    _ = made.example


def options_without_effect(run: Run, accepted: frozenset[str]) -> list[str]:
    """Return one line with the options that only matter to folders, if some are given.

    Args:
        accepted: arguments that the class takes.
    """
    told = {option for option, argument in _HANDED_OVER.items() if argument in accepted}
    asked = [
        f"--{option.name}"
        for section in (run[CaptionConfig], run[ImageConfig], run[DatasetConfig])
        for option in fields(section)
        if option.name not in {*told, *_STILL_MEANT, "dataset_class"}
        and getattr(section, option.name) != option.default
    ]
    reason = "no effect with --dataset_class, which makes images and captions itself"
    return [f"{' and '.join(asked)} {'have' if len(asked) > 1 else 'has'} {reason}"] if asked else []


def _found(name: str) -> type:
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        raise UserError(f"--dataset_class is {name}; write it as package.module.Class")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UserError(f"--dataset_class {name}: {_reason(error)}") from error
    except (ImportError, SyntaxError) as error:
        raise UserError(f"--dataset_class {name}: {module_name} cannot be imported: {error}") from error
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind):
        place = getattr(module, "__file__", "a part of Python")
        raise UserError(f"--dataset_class is {name}; {module_name} ({place}) has no such class")
    return kind


def _reason(error: ModuleNotFoundError) -> str:
    if (error.name or "").split(".")[0] == "library":
        return (
            "it imports sd-scripts' own modules (library); it needs no base class from there, "
            "see docs/datasets.md"
        )
    return f"there is no module {error.name} in {os.getcwd()} or where Python has its packages"


def _accepted(kind: type, offered: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return those of the arguments that the constructor of `kind` takes."""
    parameters = inspect.signature(kind).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(offered)
    wanted = [p for p in parameters if p.kind is not p.VAR_POSITIONAL]
    for parameter in wanted:
        if parameter.name not in offered and parameter.default is parameter.empty:
            raise UserError(
                f"--dataset_class {name} wants the argument {parameter.name}, which is not known here; "
                f"give it a default, known are {', '.join(offered)}"
            )
    return {parameter.name: offered[parameter.name] for parameter in wanted if parameter.name in offered}


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """Seed the global generators for a while, so that what is drawn does not depend on what came before."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # not `torch.manual_seed`: it reseeds devices, too
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
