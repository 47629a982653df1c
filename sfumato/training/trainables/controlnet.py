"""Learn a ControlNet, which makes a frozen model of any family that takes one follow control images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.config.run.model.control_networks import ControlNetConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.data.batches.collate import Batch
from sfumato.errors import UserError
from sfumato.models.components.controlnet.steering import Control, steered
from sfumato.models.interface.conditioning import CONTROL_IMAGE, Conditioning
from sfumato.models.interface.family import CONTROLNET, DENOISER, Family, TakesControl
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.models.interface.publishing import Layout, Publishing, tensors_of
from sfumato.training.core.memory import prepare_blocks
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup, Volume, files
from sfumato.training.trainables.conditions import ControlImages
from sfumato.training.trainables.denoising import Denoising, denoising_for, objective_of
from sfumato.training.trainables.full import named_tensors
from sfumato.training.trainables.objective import StepLoss


def create(run: Run, family: Family) -> ControlNetMethod:
    """Return the way to train the ControlNet that `run` asks for."""
    return ControlNetMethod(run, family)


@dataclass(frozen=True)
class ControlNetMethod:
    """A ControlNet bound to a run; see `TrainingMethod`."""

    run: Run
    family: Family
    trained_encoders: Sequence[str] = ()
    base_change: PartChange | None = None
    trained_parts: Sequence[str] = (CONTROLNET,)
    is_recorded: bool = False
    project: str = "controlnet_train"

    def check(self, precision: Precision) -> Volume:
        """Build the ControlNet without memory and count; see `TrainingMethod`."""
        objective_of(self.run, self.family)
        net = self.family.load(CONTROLNET, torch.bfloat16, torch.device("meta"))
        how = publishing(files.save_dtype(self.run) or precision.trained, {})
        shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors({CONTROLNET: net})}
        return Volume(
            num_weights=sum(weight.numel() for weight in net.parameters()),
            file_bytes=self.family.written_bytes({CONTROLNET: tensors_of(net)}, how),
            shapes=shapes,
            groups=self.groups(net),
        )

    def groups(self, net: nn.Module) -> list[ParameterGroup]:
        """Return what the denoiser has not and what it has, each at its rate; a rate of 0 trains nothing.

        Raises:
            UserError: both rates are 0.
        """
        rate, own_rate = self.run[OptimizerConfig].learning_rate, self._own_rate()
        added = _taking_control(self.family).added_weights(net)
        own = [weight for name, weight in net.named_parameters() if name in added]
        copied = [weight for name, weight in net.named_parameters() if name not in added]
        if own_rate is None:
            groups = [ParameterGroup(own + copied, rate, "controlnet")]
        else:
            groups = [ParameterGroup(own, own_rate, "controlnet"), ParameterGroup(copied, rate, "unet")]
        groups = [group for group in groups if group.learning_rate]
        if not groups:
            raise UserError("every learning rate is 0, so nothing would be trained; raise --learning_rate")
        return groups

    def _own_rate(self) -> float | None:
        return self.run.get(ControlNetConfig, ControlNetConfig()).control_net_lr

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> ControlNetTraining:
        """Load the model and the ControlNet, which learns from now on; see `TrainingMethod`."""
        net = parts[CONTROLNET]
        for group in self.groups(net):
            for weight in group.parameters:
                weight.requires_grad_(True)
        for part in (CONTROLNET, DENOISER):
            prepare_blocks(self.run[MemoryConfig], self.family.blocks(part, parts[part]))
        plain = denoising_for(self.run, self.family, parts, precision, live_encoders)
        steer = _Steer(_taking_control(self.family), net)
        denoising = replace(plain, condition=ControlImages(plain.condition), steer=steer)
        return ControlNetTraining(self, net, denoising, precision)

    def beside(self, path: Path) -> Sequence[Path]:
        """Return nothing: a ControlNet is one file."""
        return ()


@dataclass
class ControlNetTraining:
    """A ControlNet at work; a `Trainable`."""

    method: ControlNetMethod
    net: nn.Module
    denoising: Denoising
    precision: Precision
    file_holds_all: bool = False

    @property
    def network(self) -> None:
        """Return None: there are no adapters."""

    def groups(self) -> list[ParameterGroup]:
        """Return the weights by their rates."""
        return self.method.groups(self.net)

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        return self.denoising.loss(batch, rng)

    def step_begins(self, step: Step) -> None:
        """Do nothing: steps are all alike."""

    def step_ends(self) -> Mapping[str, Tensor]:
        """Report nothing besides the loss."""
        return {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the ControlNet's tensors, live."""
        return named_tensors({CONTROLNET: self.net})

    def snapshot(self, metadata: Mapping[str, str]) -> None:
        """Return None: a second copy of so large a network is not made."""

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the ControlNet as files for this kind of model name its tensors."""
        run, family = self.method.run, self.method.family
        dtype = files.holding_dtype(run, self.tensors()) or self.precision.trained
        how = publishing(dtype, {**metadata, **files.description(run, family, "controlnet")})
        family.write({CONTROLNET: tensors_of(self.net)}, path, how)


def publishing(dtype: torch.dtype, metadata: Mapping[str, str]) -> Publishing:
    """Return how a ControlNet is written: as a file of its own."""
    return Publishing(Layout.PART_FILES, dtype, metadata)


@dataclass(frozen=True)
class _Steer:
    family: TakesControl
    net: nn.Module

    def __call__(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Conditioning:
        """Return what the denoiser is told, with what the ControlNet makes of the control images."""
        control = Control(self.net, conditioning.control[CONTROL_IMAGE])
        return steered(self.family, [control], noisy, timesteps, conditioning)


def _taking_control(family: Family) -> TakesControl:
    if not isinstance(family, TakesControl):
        raise ValueError(f"{type(family).__name__} has no ControlNets")
    return family
