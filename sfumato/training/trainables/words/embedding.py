"""Learn a new word (textual inversion) for a model of which nothing else changes.

Only the word's vectors are parameters: Gal et al. 2022 (arXiv:2208.01618).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.words.embedding_file import write_embedding
from sfumato.config.rules.strictness import complain
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.data.batches.collate import Batch
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.training.core.memory import prepare_blocks
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup, Volume, files
from sfumato.training.trainables.denoising import Denoising, denoising_for, objective_of
from sfumato.training.trainables.objective import StepLoss
from sfumato.training.trainables.words.new_word import NewWord, new_word


def create(run: Run, family: Family) -> EmbeddingMethod:
    """Return the way to learn the word that `run` asks for."""
    return EmbeddingMethod(run, family, new_word(run, family))


@dataclass(frozen=True)
class EmbeddingMethod:
    """A new word bound to a run; see `TrainingMethod`."""

    run: Run
    family: Family
    new: NewWord
    base_change: PartChange | None = None
    trained_parts: Sequence[str] = ()
    is_recorded: bool = False
    project: str = "textual_inversion"

    @property
    def trained_encoders(self) -> Sequence[str]:
        """The text encoders that have vectors of the word."""
        return tuple(self.new.keys)

    def check(self, precision: Precision) -> Volume:
        """Look at the word, and at what it starts from; count. See `TrainingMethod`."""
        objective_of(self.run, self.family)
        shapes = self.new.check()
        complain(self.run, list(self.new.without_effect()))
        num_weights = sum(map(math.prod, shapes.values()))
        width = (files.save_dtype(self.run) or torch.float32).itemsize
        groups = self.groups([nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes.values()])
        return Volume(num_weights, num_weights * width, shapes=shapes, groups=groups)

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> EmbeddingTraining:
        """Load the models and put the word's vectors into the text encoders; see `TrainingMethod`."""
        vectors = self.new.learn(parts, precision)
        for name in (DENOISER, *self.trained_encoders):
            prepare_blocks(self.run[MemoryConfig], self.family.blocks(name, parts[name]))
        shared = self.run, self.family, parts, precision, live_encoders
        return EmbeddingTraining(self, vectors, denoising_for(*shared, self.trained_encoders))

    def beside(self, path: Path) -> Sequence[Path]:
        """Return nothing: a word is one file."""
        return ()

    def groups(self, vectors: Sequence[nn.Parameter]) -> list[ParameterGroup]:
        """Return all vectors with the one learning rate."""
        return [ParameterGroup(list(vectors), self.run[OptimizerConfig].learning_rate, "words")]


@dataclass
class EmbeddingTraining:
    """A word that is learned; a `Trainable`.

    Attributes:
        vectors: (n, width) each, by their keys in files.
        file_holds_all: False: files are float32, or as `--save_precision` says.
    """

    method: EmbeddingMethod
    vectors: Mapping[str, nn.Parameter]
    denoising: Denoising
    file_holds_all: bool = False

    @property
    def network(self) -> None:
        """Return None: there are no adapters."""

    def groups(self) -> list[ParameterGroup]:
        """Return the vectors."""
        return self.method.groups([*self.vectors.values()])

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        return self.denoising.loss(batch, rng)

    def step_begins(self, step: Step) -> None:
        """Do nothing: every step is alike."""

    def step_ends(self) -> Mapping[str, Tensor]:
        """Report nothing besides the loss."""
        return {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the vectors, live."""
        return iter(self.vectors.items())

    def snapshot(self, metadata: Mapping[str, str]) -> None:
        """Return None: so few numbers are written at once."""

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the word's vectors."""
        run, family = self.method.run, self.method.family
        described = {**metadata, **files.description(run, family, "textual-inversion")}
        saved = self.method.new.as_saved(self.vectors)
        write_embedding(path, saved, described, files.holding_dtype(run, self.tensors()))
