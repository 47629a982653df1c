"""What can be learned, given any family: one module for each way."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from sfumato.adapters.network.network import Network
from sfumato.adapters.network.rates import ParameterGroup
from sfumato.config.run.run import Run
from sfumato.config.run.training.words import JoinedWordConfig
from sfumato.data.batches.collate import Batch
from sfumato.models.interface.family import Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables.objective import StepLoss


@dataclass(frozen=True)
class Volume:
    """How much a run trains and saves, and of what sizes its images may be.

    Attributes:
        num_weights: that are trained.
        file_bytes: of one saved file.
        file_holds_all: see `Trainable`.
        shapes: of what a state has to hold, by name, as far as it is known before a model is loaded.
        groups: what is trained at which rate, without numbers; likewise.
        size_multiple: in pixels, of which the sides of images must be multiples for what is trained.
    """

    num_weights: int
    file_bytes: int
    file_holds_all: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    groups: Sequence[ParameterGroup] = ()
    size_multiple: int = 1


class Trainable(Protocol):
    """What is learned, with its weights in memory.

    Attributes:
        file_holds_all: whether `save` writes just what `tensors` yields, each as it is and under its name.
        network: the adapters at work on the model, if it has any.
    """

    file_holds_all: bool

    @property
    def network(self) -> Network | None:
        """The adapters; see above."""
        ...

    def groups(self) -> Sequence[ParameterGroup]:
        """Return the parameters to optimize; each belongs to exactly one group."""
        ...

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image; all that is random comes from `rng` or the global generators."""
        ...

    def step_begins(self, step: Step) -> None:
        """Get ready for an optimizer step."""
        ...

    def step_ends(self) -> Mapping[str, Tensor]:
        """Act on the weights as an optimizer step left them; return figures to record, 0-d on the device."""
        ...

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what a state must hold, by name; the tensors are the live ones."""
        ...

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the weights, as `step` left them, in the way they are used elsewhere."""
        ...

    def snapshot(self, metadata: Mapping[str, str]) -> Callable[[Path], None] | None:
        """Return what writes the file that `save` would write now, at any time and from any thread.

        It holds a copy of the weights in RAM. None where there is no room for one, or no way.
        """
        ...


class TrainingMethod(Protocol):
    """One way of training, bound to a run, before any weight is loaded.

    Attributes:
        trained_encoders: text encoders whose outputs change during the run, so that they cannot be cached.
        base_change: what is done to the parts that are trained on, or None.
        trained_parts: parts whose own weights are trained.
        is_recorded: whether saved files tell how they were trained, in the manner of adapter files.
        project: what trackers call such runs unless told otherwise.
    """

    trained_encoders: Sequence[str]
    base_change: PartChange | None
    trained_parts: Sequence[str]
    is_recorded: bool
    project: str

    def check(self, precision: Precision) -> Volume:
        """Raise UserError for what cannot work; return how much is saved."""
        ...

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> Trainable:
        """Load what is trained and what it is trained on.

        Args:
            live_encoders: text encoders that run in every step, because their outputs are not cached.
        """
        ...

    def beside(self, path: Path) -> Sequence[Path]:
        """Return the files and folders that may be written beside a saved file; they come and go with it."""
        ...


def method_for(run: Run, family: Family) -> TrainingMethod:
    """Return the run's way of training, to which a word may be joined."""
    is_joined = bool(run.get(JoinedWordConfig, JoinedWordConfig()).train_words)
    module = "words.joined" if is_joined else run.method
    return importlib.import_module(f"{__name__}.{module}").create(run, family)
