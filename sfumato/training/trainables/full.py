"""Train all weights of a denoiser, of any family, and of text encoders where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.config.rules.strictness import complain
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.output.saving import FOLDER_FORMATS, SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.trained_parts import TrainedPartsConfig
from sfumato.data.batches.collate import Batch
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.models.interface.publishing import Layout, Publishing, part_paths, tensors_of
from sfumato.training.core.encoders import cached_encoders
from sfumato.training.core.memory import prepare_blocks
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup, Volume, files
from sfumato.training.trainables.denoising import Denoising, denoising_for, objective_of
from sfumato.training.trainables.objective import StepLoss
from sfumato.training.trainables.part_rates import PartRates, rates_for, without_effect


def create(run: Run, family: Family) -> FullMethod:
    """Return the way to train the whole denoiser, and the text encoders if the run's options say so."""
    trains_encoders = run.get(TrainedPartsConfig, TrainedPartsConfig()).train_text_encoder
    return FullMethod(run, family, rates_for(run, family, trains_encoders=trains_encoders))


@dataclass(frozen=True)
class FullMethod:
    """A whole model bound to a run; see `Method`."""

    run: Run
    family: Family
    rates: PartRates
    base_change: PartChange | None = None
    is_recorded: bool = False
    project: str = "finetuning"

    @property
    def trained_encoders(self) -> Sequence[str]:
        """See `Method`."""
        return tuple(self.rates.encoders)

    @property
    def trained_parts(self) -> Sequence[str]:
        """See `Method`."""
        return self.rates.parts

    def check(self, precision: Precision) -> Volume:
        """Build the model without memory and count; see `Method`."""
        objective_of(self.run, self.family)
        complain(self.run, [*without_effect(self.run, self.rates), *self._idle_formats(precision)])
        meta = torch.device("meta")
        models = {part: self.family.load(part, torch.bfloat16, meta) for part in self.trained_parts}
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(models)}
        num_weights = sum(tensor.numel() for _, tensor in named_tensors(models))
        how = self.publishing(files.save_dtype(self.run) or precision.trained, {})
        written = {part: tensors_of(model) for part, model in models.items()}
        file_bytes = self.family.written_bytes(written, how)
        groups = self.rates.groups(self.family, models)
        return Volume(num_weights, file_bytes, self.file_holds_all(precision), shapes, groups)

    def _idle_formats(self, precision: Precision) -> Iterator[str]:
        """Yield a line where 8 bits are asked for, and all that could be stored so is trained or cached."""
        settled = {*self.trained_encoders, *cached_encoders(self.run, self.family, self.trained_encoders)}
        is_frozen_alive = precision.fp8_encoders and bool(self.family.text_outputs.keys() - settled)
        if precision.fp8 and self.rates.denoiser and not is_frozen_alive:
            yield "--fp8_base has no effect: steps run nothing but what is trained, which needs more bits"

    def publishing(self, dtype: torch.dtype, metadata: Mapping[str, str]) -> Publishing:
        """Return how the model is written: as it is published, or as a folder in diffusers' layout."""
        kind = self.run[SavingConfig].save_model_as
        layout = Layout.FOLDER if kind in FOLDER_FORMATS else None
        return Publishing(layout, dtype, metadata, as_safetensors=kind != "diffusers")

    def file_holds_all(self, precision: Precision) -> bool:
        """Return whether saved files hold the weights exactly as they are trained, under their names."""
        is_exact = files.save_dtype(self.run) in (None, precision.trained)
        is_own = self.family.saved_as is Layout.PART_FILES
        return is_exact and is_own and self.run[SavingConfig].save_model_as in (None, "safetensors")

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> FullTraining:
        """Load what is trained and make it learn; see `Method`."""
        models = {part: parts[part] for part in self.trained_parts}
        for group in self.rates.groups(self.family, models):
            for weight in group.parameters:
                weight.requires_grad_(True)
        for part in dict.fromkeys((DENOISER, *models)):
            prepare_blocks(self.run[MemoryConfig], self.family.blocks(part, parts[part]))
        return FullTraining(self, models, parts, precision, live_encoders)

    def beside(self, path: Path) -> Sequence[Path]:
        """Return the files of text encoders, which families may publish apart."""
        _, *others = part_paths(path, [DENOISER, *self.trained_encoders]).values()
        return others


@dataclass
class FullTraining:
    """A model that learns; a `Trainable`.

    Attributes:
        models: the parts that are trained, by name.
        parts: of the whole model.
        live_encoders: text encoders that run in every step.
    """

    method: FullMethod
    models: Mapping[str, nn.Module]
    parts: Parts
    precision: Precision
    live_encoders: Sequence[str]

    def __post_init__(self) -> None:
        self.file_holds_all = self.method.file_holds_all(self.precision)
        self.denoising = self._denoising(self.method.trained_encoders)

    @property
    def network(self) -> None:
        """Return None: there are no adapters."""

    def groups(self) -> list[ParameterGroup]:
        """Return the weights by their rates."""
        return self.method.rates.groups(self.method.family, self.models)

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        return self.denoising.loss(batch, rng)

    def step_begins(self, step: Step) -> None:
        """Let the text encoders be as they are from now on, if the last step that changes them is over."""
        last = self.method.rates.last_encoder_step
        if last is not None and step.number > last:
            self.denoising = self._denoising(())

    def step_ends(self) -> Mapping[str, Tensor]:
        """Report nothing besides the loss."""
        return {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of all parts that are trained, live."""
        return named_tensors(self.models)

    def snapshot(self, metadata: Mapping[str, str]) -> None:
        """Return None: a second whole model in RAM is more than most machines hold."""

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the model, with what was not trained as its base has it."""
        run, family = self.method.run, self.method.family
        dtype = files.holding_dtype(run, self.tensors()) or self.precision.trained
        described = {**metadata, **files.description(run, family, "checkpoint")}
        how = self.method.publishing(dtype, described)
        if path.suffix.lower() in PICKLE_SUFFIXES:
            how = replace(how, epoch=step.epoch if step.ends_epoch else step.epoch - 1, step=step.number)
        family.write({part: tensors_of(model) for part, model in self.models.items()}, path, how)

    def _denoising(self, trained_encoders: Sequence[str]) -> Denoising:
        run, family = self.method.run, self.method.family
        return denoising_for(run, family, self.parts, self.precision, self.live_encoders, trained_encoders)


def named_tensors(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of parts, live; the denoiser's under its own names, others' behind the part's."""
    for part, model in models.items():
        prefix = "" if part == DENOISER else f"{part}."
        for name, tensor in model.state_dict(keep_vars=True).items():
            yield prefix + name, tensor
