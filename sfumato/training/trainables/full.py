"""Train all weights of a denoiser, of any family; text encoders stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.output.saving import FOLDER_FORMATS, SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.data.batches.collate import Batch
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.models.interface.publishing import Layout, Publishing, tensors_of
from sfumato.training.core.memory import prepare_blocks
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup, Volume, files
from sfumato.training.trainables.denoising import Denoising, denoising_for, objective_of
from sfumato.training.trainables.objective import StepLoss


def create(run: Run, family: Family) -> FullMethod:
    """Return the way to train the whole denoiser."""
    return FullMethod(run, family)


@dataclass(frozen=True)
class FullMethod:
    """A whole denoiser bound to a run; see `Method`."""

    run: Run
    family: Family
    trained_encoders: Sequence[str] = ()
    base_change: PartChange | None = None
    trained_parts: Sequence[str] = (DENOISER,)
    is_recorded: bool = False
    project: str = "finetuning"

    def check(self, precision: Precision) -> Volume:
        """Build the model without memory and count; see `Method`."""
        objective_of(self.run, self.family)
        if not self.run[OptimizerConfig].learning_rate:
            raise UserError("--learning_rate is 0, so nothing would be trained; raise it")
        model = self.family.load(DENOISER, torch.bfloat16, torch.device("meta"))
        num_weights = sum(tensor.numel() for tensor in model.state_dict().values())
        how = self.publishing(files.save_dtype(self.run) or precision.trained, {})
        file_bytes = self.family.written_bytes({DENOISER: tensors_of(model)}, how)
        return Volume(num_weights, file_bytes, self.file_holds_all(precision))

    def publishing(self, dtype: torch.dtype, metadata: Mapping[str, str]) -> Publishing:
        """Return how the model is written: as it is published, or as a folder in diffusers' layout."""
        is_folder = self.run[SavingConfig].save_model_as in FOLDER_FORMATS
        return Publishing(Layout.FOLDER if is_folder else None, dtype, metadata)

    def file_holds_all(self, precision: Precision) -> bool:
        """Return whether saved files hold the weights exactly as they are trained, under their names."""
        is_exact = files.save_dtype(self.run) in (None, precision.trained)
        return is_exact and self.run[SavingConfig].save_model_as in (None, "safetensors")

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> FullTraining:
        """Load the denoiser and make it learn; see `Method`."""
        model = parts[DENOISER].requires_grad_(True)
        prepare_blocks(self.run[MemoryConfig], self.family.blocks(DENOISER, model))
        denoising = denoising_for(self.run, self.family, parts, precision, live_encoders)
        return FullTraining(self, model, denoising, self.file_holds_all(precision))


@dataclass
class FullTraining:
    """A denoiser that learns; a `Trainable`.

    Attributes:
        file_holds_all: see `Trainable`.
    """

    method: FullMethod
    model: nn.Module
    denoising: Denoising
    file_holds_all: bool

    @property
    def network(self) -> None:
        """Return None: there are no adapters."""

    def groups(self) -> list[ParameterGroup]:
        """Return one group: all weights."""
        rate = self.method.run[OptimizerConfig].learning_rate
        return [ParameterGroup(list(self.model.parameters()), rate, "unet")]

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        return self.denoising.loss(batch, rng)

    def step_begins(self, step: Step) -> None:
        """Do nothing: the model is ready."""

    def step_ends(self) -> Mapping[str, Tensor]:
        """Report nothing besides the loss."""
        return {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the model's tensors, live."""
        return iter(self.model.state_dict(keep_vars=True).items())

    def snapshot(self, metadata: Mapping[str, str]) -> None:
        """Return None: a second whole model in RAM is more than most machines hold."""

    def save(self, path: Path, metadata: Mapping[str, str]) -> None:
        """Write the model, with what was not trained as its base has it."""
        run, family = self.method.run, self.method.family
        dtype = files.holding_dtype(run, self.tensors()) or self.denoising.precision.trained
        described = {**metadata, **files.description(run, family, "checkpoint")}
        how = self.method.publishing(dtype, described)
        family.write({DENOISER: tensors_of(self.model)}, path, how)
