"""Learn an adapter (LoRA and its kin) on a frozen model of any family."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files import sizes
from sfumato.adapters.network.base_weights import BaseAdapters
from sfumato.adapters.network.network import Network
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.network.rates import ParameterGroup
from sfumato.adapters.sd_scripts import network_modules
from sfumato.checkpoints.metadata import minimum_set
from sfumato.config.rules.strictness import complain
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.data.batches.collate import Batch
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.parts import PartChange, Parts
from sfumato.training.core.memory import prepare_blocks
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import Volume, files
from sfumato.training.trainables.denoising import Denoising, denoising_for, objective_of
from sfumato.training.trainables.objective import StepLoss

logger = logging.getLogger(__name__)


def create(run: Run, family: Family) -> AdapterMethod:
    """Return the way to train the adapter that `run` asks for."""
    plan = network_modules.resolve(run)
    parts = plan.parts(family)
    trained = [part for part in parts if part != DENOISER]
    config = run[NetworkConfig]
    if not config.base_weights:
        return AdapterMethod(run, family, plan, trained)
    base = BaseAdapters(
        family,
        config.base_weights,
        config.base_weights_multiplier or (),
        allow_partial=run.get(PartialUseConfig, PartialUseConfig()).allow_partial,
    )
    return AdapterMethod(run, family, plan, trained, base)


@dataclass(frozen=True)
class AdapterMethod:
    """An adapter bound to a run; see `Method`."""

    run: Run
    family: Family
    plan: NetworkPlan
    trained_encoders: Sequence[str]
    base_change: PartChange | None = None
    trained_parts: Sequence[str] = ()
    is_recorded: bool = True
    project: str = "network_train"

    def check(self, precision: Precision) -> Volume:
        """Build the adapter on models without memory: everything that does not fit is found in a second."""
        objective_of(self.run, self.family)
        meta = torch.device("meta")
        models = {part: self.family.load(part, torch.bfloat16, meta) for part in self.plan.parts(self.family)}
        network = self.plan.rehearse(self.family, models)
        if network is None:
            return Volume(0, 0)
        groups = self._judged(network)
        num_saved = sum(tensor.numel() for tensor in network.trainable.state_dict().values())
        width = (files.save_dtype(self.run) or precision.trained).itemsize
        shapes = {name: tuple(tensor.shape) for name, tensor in network.tensors()}
        num_weights = sum(map(math.prod, shapes.values()))
        return Volume(num_weights, num_saved * width, shapes=shapes, groups=groups)

    def _judged(self, network: Network) -> list[ParameterGroup]:
        """Say what is wrong with a network and its rates; return its groups."""
        logger.info("the adapter %s", network.describe())
        groups = self.groups(network)
        if not groups:
            raise UserError("every learning rate is 0, so nothing would be trained; raise --learning_rate")
        complain(self.run, list(self._without_effect(network)))
        return groups

    def build(self, parts: Parts, precision: Precision, live_encoders: Sequence[str]) -> AdapterTraining:
        """Load the models and attach the adapter to them; see `Method`."""
        models = {part: parts[part] for part in self.plan.parts(self.family)}
        network = self.plan.build(self.family, models)
        network.trainable.to(precision.device, precision.trained)
        network.attach()
        for name in (DENOISER, *self.trained_encoders):
            prepare_blocks(self.run[MemoryConfig], self.family.blocks(name, parts[name]))
        denoising = denoising_for(
            self.run, self.family, parts, precision, live_encoders, self.trained_encoders
        )
        return AdapterTraining(self, network, denoising)

    def beside(self, path: Path) -> Sequence[Path]:
        """Return nothing: an adapter is one file."""
        return ()

    def record(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return a file's metadata: ours, reduced if the user wants none, and modelspec's."""
        kept = minimum_set(metadata) if self.run[SavingConfig].no_metadata else dict(metadata)
        return kept | files.description(self.run, self.family, "lora")

    def _without_effect(self, network: Network) -> Iterator[str]:
        """Yield a line for each option that was given although it changes nothing."""
        config, names = self.run[NetworkConfig], list(self.family.text_outputs)
        if config.scale_weight_norms and not network.can_limit_norms:
            yield "--scale_weight_norms has no effect: this --network_module cannot scale weights"
        rates, numbers = (
            config.text_encoder_lr or (),
            [names.index(part) + 1 for part in self.trained_encoders],
        )
        if any(rates) and not numbers:
            yield "--text_encoder_lr has no effect: no text encoder is trained"
        elif numbers and any(rates[max(numbers) :]):
            yield f"--text_encoder_lr has no effect beyond its first {max(numbers)}: no more is trained"

    def groups(self, network: Network) -> list[ParameterGroup]:
        """Return what is trained at which rate."""
        config = self.run[NetworkConfig]
        rate = self.run[OptimizerConfig].learning_rate
        return network.parameter_groups(rate, config.unet_lr, config.text_encoder_lr)


@dataclass
class AdapterTraining:
    """An adapter at work; a `Trainable`.

    Attributes:
        network: attached to the parts it adapts.
        file_holds_all: False: what is saved is named and shaped as other programs want it.
    """

    method: AdapterMethod
    network: Network
    denoising: Denoising
    file_holds_all: bool = False
    _epoch: int = 0

    def groups(self) -> list[ParameterGroup]:
        """Return the adapter's parameters; parts whose rate is 0 are left out."""
        return self.method.groups(self.network)

    def step_begins(self, step: Step) -> None:
        """Tell the adapter where the run is."""
        if step.epoch != self._epoch:
            self._epoch = step.epoch
            self.network.on_epoch_start()
        self.network.on_step_start()

    def step_ends(self) -> Mapping[str, Tensor]:
        """Let the adapter take note, and keep its norms within their limit, if there is one."""
        figures = self.network.on_step_end()
        limit = self.method.run[NetworkConfig].scale_weight_norms
        if limit and self.network.can_limit_norms:
            figures |= self.network.limit_norms(limit)
        return figures

    def loss(self, batch: Batch, rng: torch.Generator) -> StepLoss:
        """Return the loss of each image of `batch`."""
        self.network.set_strength(float(batch.network_multipliers[0]))  # one data set, one strength
        return self.denoising.loss(batch, rng)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the adapter's own tensors, live, and what it remembers."""
        return iter(self.network.tensors())

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        """Write the adapter file."""
        dtype = files.holding_dtype(self.method.run, self.tensors())
        self.network.save(path, dtype, self.method.record(metadata))
        _tell_sizes(path)

    def snapshot(self, metadata: Mapping[str, str]) -> Callable[[Path], None] | None:
        """Return what writes the adapter file as it is now, if the network can be copied."""
        dtype = files.holding_dtype(self.method.run, self.tensors())
        write = self.network.snapshot(dtype, self.method.record(metadata))

        def write_and_tell(path: Path) -> None:
            if write is not None:
                write(path)
                _tell_sizes(path)

        return write and write_and_tell


def _tell_sizes(path: Path) -> None:
    if summary := sizes.describe_file(path):
        logger.info("%s: %s", path.name, summary)
