"""Learn a ControlNet-LLLite, which makes a frozen model follow control images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.lllite import network as networks
from sfumato.adapters.lllite.network import LLLite
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.config.run.model.control_networks import LLLiteConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.data.batches.collate import Batch
from sfumato.errors import UserError
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.models.interface.targets import TakesLLLite
from sfumato.training.core.memory import prepare_blocks
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup, Volume, files
from sfumato.training.trainables.conditions import Condition
from sfumato.training.trainables.denoising import Denoising, denoising_for, objective_of
from sfumato.training.trainables.objective import StepLoss

EMBEDDING, WIDTH = 32, 64
"""Sizes of the small networks where the user gives none."""

logger = logging.getLogger(__name__)


def create(run: Run, family: Family) -> LLLiteMethod:
    """Return the way to train the ControlNet-LLLite that `run` asks for."""
    return LLLiteMethod(run, family)


@dataclass(frozen=True)
class LLLiteMethod:
    """A ControlNet-LLLite bound to a run; see `TrainingMethod`."""

    run: Run
    family: Family
    trained_encoders: Sequence[str] = ()
    base_change: PartChange | None = None
    trained_parts: Sequence[str] = ()
    is_recorded: bool = False
    project: str = "lllite_control_net_train"

    def check(self, precision: Precision) -> Volume:
        """Build the network on a model without memory and count; see `TrainingMethod`."""
        objective_of(self.run, self.family)
        network = self._network(self.family.load(DENOISER, torch.bfloat16, torch.device("meta")))
        state = network.tensors()
        width = (files.save_dtype(self.run) or precision.trained).itemsize
        num_weights = sum(tensor.numel() for tensor in state.values())
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        logger.info("the ControlNet-LLLite has %d layers and %d weights", len(network.layers), num_weights)
        return Volume(
            num_weights,
            num_weights * width,
            shapes=shapes,
            groups=self.groups(network),
            size_multiple=network.size_multiple,
        )

    def groups(self, network: LLLite) -> list[ParameterGroup]:
        """Return all weights, at one rate.

        Raises:
            UserError: it is 0.
        """
        rate = self.run[OptimizerConfig].learning_rate
        if not rate:
            raise UserError("--learning_rate is 0, so nothing would be trained; raise it")
        return [ParameterGroup(list(network.parameters()), rate, "lllite")]

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> LLLiteTraining:
        """Load the model and attach the network to it; see `TrainingMethod`."""
        denoiser = parts[DENOISER]
        network = self._network(denoiser).to(precision.device, precision.trained)
        network.attach(networks.attachable(self.family.adapter_targets(DENOISER, denoiser)))
        prepare_blocks(self.run[MemoryConfig], self.family.blocks(DENOISER, denoiser))
        plain = denoising_for(self.run, self.family, parts, precision, live_encoders)
        denoising = replace(plain, condition=_Shown(plain.condition, network))
        return LLLiteTraining(self, network, denoising, precision)

    def beside(self, path: Path) -> Sequence[Path]:
        """Return nothing: the network is one file."""
        return ()

    def _network(self, denoiser: nn.Module) -> LLLite:
        config, family = self.run[LLLiteConfig], self.family
        dropout = config.network_dropout or 0.0
        if config.network_weights:
            modules = networks.attachable(family.adapter_targets(DENOISER, denoiser))
            return networks.load(Path(config.network_weights), modules, dropout)
        if not isinstance(family, TakesLLLite):
            raise ValueError(f"{type(family).__name__} takes no ControlNet-LLLite")
        sizes = config.cond_emb_dim or EMBEDDING, config.network_dim or WIDTH
        return networks.begin(family.controlled_layers(denoiser), *sizes, dropout)


@dataclass
class LLLiteTraining:
    """A ControlNet-LLLite at work; a `Trainable`."""

    method: LLLiteMethod
    lllite: LLLite
    denoising: Denoising
    precision: Precision
    file_holds_all: bool = False

    @property
    def network(self) -> None:
        """Return None: there are no adapters that could be put to rest."""

    def groups(self) -> list[ParameterGroup]:
        """Return the weights."""
        return self.method.groups(self.lllite)

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        return self.denoising.loss(batch, rng)

    def step_begins(self, step: Step) -> None:
        """Do nothing: steps are all alike."""

    def step_ends(self) -> Mapping[str, Tensor]:
        """Let go of the last control images; report nothing besides the loss."""
        self.lllite.hide()
        return {}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the network's tensors, live."""
        return iter(self.lllite.tensors().items())

    def snapshot(self, metadata: Mapping[str, str]) -> None:
        """Return None: so small a file is written before the next step would be over."""

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the network's file."""
        run, family = self.method.run, self.method.family
        dtype = files.holding_dtype(run, self.tensors()) or self.precision.trained
        described = {**metadata, **files.description(run, family, "control-net-lllite")}
        tensors = {name: LazyTensor.of(tensor.detach()) for name, tensor in self.tensors()}
        WeightFile(path, tensors, described, dtype).write()


@dataclass(frozen=True)
class _Shown:
    """What another condition says, after the network was shown the control images; a `Condition`."""

    besides: Condition
    network: LLLite

    def __call__(self, batch: Batch, rng: torch.Generator) -> Conditioning:
        """Return it; nothing is drawn for control images."""
        assert batch.control is not None
        self.network.show(batch.control)
        return self.besides(batch, rng)
