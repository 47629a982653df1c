"""Learn an adapter and a new word together (pivotal tuning): one loss, one optimizer, two files or one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.network.network import Network
from sfumato.adapters.words.bundle import add_word
from sfumato.adapters.words.embedding_file import write_embedding
from sfumato.config.rules.strictness import complain
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.words import JoinedWordConfig
from sfumato.data.batches.collate import Batch
from sfumato.models.interface.family import Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup, Volume, adapter, files
from sfumato.training.trainables.adapter import AdapterMethod, AdapterTraining
from sfumato.training.trainables.objective import StepLoss
from sfumato.training.trainables.words.new_word import NewWord, joined_word


def create(run: Run, family: Family) -> JoinedMethod:
    """Return the way to learn the adapter and the word that `run` asks for."""
    return JoinedMethod(run, family, adapter.create(run, family), joined_word(run, family))


@dataclass(frozen=True)
class JoinedMethod:
    """An adapter and a word bound to a run; see `TrainingMethod`."""

    run: Run
    family: Family
    adapter: AdapterMethod
    new: NewWord
    trained_parts: Sequence[str] = ()
    is_recorded: bool = True
    project: str = "network_train"

    @property
    def base_change(self) -> PartChange | None:
        """That of the adapter."""
        return self.adapter.base_change

    @property
    def trained_encoders(self) -> Sequence[str]:
        """The text encoders that are adapted, or have vectors of the word."""
        asked = {*self.adapter.trained_encoders, *self.new.keys}
        return tuple(part for part in self.family.text_outputs if part in asked)

    def check(self, precision: Precision) -> Volume:
        """Look at both; see `TrainingMethod`."""
        own, shapes = self.adapter.check(precision), self.new.check()
        complain(self.run, list(self.new.without_effect()))
        num_more = sum(map(math.prod, shapes.values()))
        named = {f"{_NAME}{key}": shape for key, shape in shapes.items()}
        stand_ins = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes.values()]
        return Volume(
            own.num_weights + num_more,
            own.file_bytes + num_more * torch.float32.itemsize,
            shapes={**own.shapes, **named},
            groups=[*own.groups, self.group(stand_ins)],
        )

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> JoinedTraining:
        """Put the word into the text encoders and the adapter onto all; see `TrainingMethod`."""
        vectors = self.new.learn(parts, precision)
        own = replace(self.adapter, trained_encoders=self.trained_encoders)
        return JoinedTraining(self, own.build(parts, precision, live_encoders), vectors)

    def beside(self, path: Path) -> Sequence[Path]:
        """Return the folder of the word, unless that is in the adapter's file."""
        return () if self.run[JoinedWordConfig].bundle_words else (words_folder(path),)

    def group(self, vectors: Sequence[nn.Parameter]) -> ParameterGroup:
        """Return the word's vectors with their learning rate."""
        own = self.run[JoinedWordConfig].train_words_lr
        rate = self.run[OptimizerConfig].learning_rate if own is None else own
        return ParameterGroup(list(vectors), rate, "words")


_NAME = "words."
"""What stands before the names of the word's vectors in a state."""


@dataclass
class JoinedTraining:
    """An adapter at work and a word that is learned; a `Trainable`.

    Attributes:
        vectors: (n, width) each, by their keys in files.
    """

    method: JoinedMethod
    adapter: AdapterTraining
    vectors: Mapping[str, nn.Parameter]
    file_holds_all: bool = False

    @property
    def network(self) -> Network:
        """The adapter."""
        return self.adapter.network

    def groups(self) -> list[ParameterGroup]:
        """Return the adapter's parameters, then the vectors."""
        return [*self.adapter.groups(), self.method.group([*self.vectors.values()])]

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        return self.adapter.loss(batch, rng)

    def step_begins(self, step: Step) -> None:
        """Tell the adapter where the run is."""
        self.adapter.step_begins(step)

    def step_ends(self) -> Mapping[str, Tensor]:
        """Let the adapter take note."""
        return self.adapter.step_ends()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of both, live."""
        yield from self.adapter.tensors()
        for key, vectors in self.vectors.items():
            yield f"{_NAME}{key}", vectors

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the adapter and the word."""
        self.adapter.save(path, metadata, step)
        self._write_word(path, self.vectors)

    def snapshot(self, metadata: Mapping[str, str]) -> Callable[[Path], None] | None:
        """Return what writes both as they are now, if the adapter can be copied."""
        write = self.adapter.snapshot(metadata)
        vectors = {key: vector.detach().cpu().clone() for key, vector in self.vectors.items()}

        def write_both(path: Path) -> None:
            if write is not None:
                write(path)
                self._write_word(path, vectors)

        return write and write_both

    def _write_word(self, path: Path, vectors: Mapping[str, Tensor]) -> None:
        """Write the word into the adapter's file, or in a folder beside it, under its own name."""
        run, word = self.method.run, self.method.new.word.text
        dtype = files.holding_dtype(run, vectors.items())
        if run[JoinedWordConfig].bundle_words:
            add_word(path, word, {key: vector.to(dtype or torch.float32) for key, vector in vectors.items()})
            return
        folder = words_folder(path)
        folder.mkdir(exist_ok=True)
        described = files.description(run, self.method.family, "textual-inversion")
        write_embedding(folder / f"{word}{path.suffix}", vectors, described, dtype)


def words_folder(path: Path) -> Path:
    """Return the folder for the files of words that belong to an adapter's file."""
    return path.with_name(f"{path.stem}-words")
