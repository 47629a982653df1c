"""`--network_module` of another project (LyCORIS, a user's own file), before there is a network.

Such a module offers `create_network` and `create_network_from_weights`. Some networks read the weights of the
layers they adapt when they are built: they are built on real ones, and before those are loaded on weights
without numbers.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sfumato import installing
from sfumato.adapters.files.key_names import copy_by_path, names_in_files, unknown
from sfumato.adapters.network.network import Network
from sfumato.adapters.sd_scripts import class_values
from sfumato.adapters.sd_scripts.third_party import ForeignNetwork
from sfumato.errors import UserError, guest_code
from sfumato.log import counted
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.nn import dry_run, precision

logger = logging.getLogger(__name__)

_MUST_HAVE = ("apply_to", "load_weights", "prepare_optimizer_params", "save_weights")

Models = Mapping[str, nn.Module]


@dataclass(frozen=True)
class ForeignPlan:
    """A network of somebody else's module, to be built once the model is there; see `Plan`.

    Attributes:
        module_name: as given with `--network_module`.
        arguments: `--network_args`, all as text.
        rank, alpha, dropout: as given, None where not.
        weights: file to take the network's shape from (`--dim_from_weights`), or None.
        start: file to load into the network, or None.
        options: all options of the run, for modules that ask for them.
        replaced: arguments that the module gets instead of those that were given.
        layers_stand_alone: whether what a layer makes depends on its input alone, so that it can be tried.
        class_values: values that classes of the module get before it makes a network, by the class's name.
    """

    module_name: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    rank: int | None = None
    alpha: float | None = None
    dropout: float | None = None
    weights: Path | None = None
    start: Path | None = None
    trains_denoiser: bool = True
    trains_text_encoders: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    replaced: Mapping[str, str] = field(default_factory=dict)
    layers_stand_alone: bool = False
    class_values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def check(self) -> None:
        """Raise UserError unless the module can be imported and offers what is needed."""
        function = "create_network_from_weights" if self.weights else "create_network"
        if not callable(getattr(_import(self.module_name), function, None)):
            raise UserError(f"--network_module {self.module_name} has no {function}; use another module")

    def parts(self, family: Family) -> list[str]:
        """Return the names of the parts that may be adapted, text encoders first."""
        texts = list(family.text_outputs) if self.trains_text_encoders else []
        return [*texts, DENOISER] if self.trains_denoiser else texts

    def rehearse(self, family: Family, models: Models) -> Network | None:
        """Build the network on models of the meta device; see `Plan`."""
        # LyCORIS passes over layers of a file that it cannot make on the meta device.
        network = None if self.weights else self._attempt(self._tried, family, models)
        if network is None:
            network = self._attempt(self._build_without_numbers, family, models)
        if network is None:
            logger.info(
                "%s reads weights: what it makes of them is seen once they are there", self.module_name
            )
        return network

    def build(self, family: Family, models: Models) -> ForeignNetwork:
        """Make the network and apply it; a part that is not in `models` is an empty module to it."""
        texts = [models.get(part, nn.Module()) for part in family.text_outputs]
        text_encoders = texts[0] if len(texts) == 1 else texts
        denoiser = models.get(DENOISER, nn.Module())
        names = names_in_files(family, models)
        for model in models.values():
            precision.show_widened(model)
        with (
            copy_by_path(self.weights, names) if self.weights else nullcontext() as file,
            self._exact(models),
        ):
            network = self._made(file, models.get(VAE), text_encoders, denoiser)
            wrapped = ForeignNetwork(
                network,
                self._label,
                text_encoders,
                denoiser,
                self.trains_text_encoders,
                self.trains_denoiser,
                names,
            )
            wrapped.attach()  # these networks make their parameters known only when applied
        self._require_layers(network)
        if rest := unknown(network.state_dict(), names):
            number = counted(len(rest), "layer is", "layers are")
            logger.info("%s saved under the module's own names (%s ...)", number, rest[0])
        network.float()  # whatever the base is stored in: what was trained does not fit into 8 or 16 bits
        if self.start:
            wrapped.load(self.start)
        return wrapped

    @property
    def _label(self) -> str:
        """What errors are about: the module and what it was told."""
        told = " ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"--network_module {self.module_name}" + (f" with --network_args {told}" if told else "")

    def _attempt(
        self, build: Callable[[Family, Models], Network], family: Family, models: Models
    ) -> Network | None:
        """Return what `build` makes, or None if it asks for numbers where there are none."""
        try:
            return build(family, models)
        except (RuntimeError, TypeError) as error:
            if not dry_run.lacks_numbers(error):
                raise
            logger.debug("%s: %s", self.module_name, error)
            return None

    def _build_without_numbers(self, family: Family, models: Models) -> Network:
        with dry_run.without_numbers(dry_run.DEVICE.type):
            return self._tried(family, {part: dry_run.empty_like(model) for part, model in models.items()})

    def _tried(self, family: Family, models: Models) -> Network:
        """Build the network on models without numbers, whose format is of no matter, and try its layers."""
        network = self.build(family, {part: model.float() for part, model in models.items()})
        if self.layers_stand_alone:
            weights = (weight for model in models.values() for weight in model.parameters())
            network.try_layers(next(weights).device)
        return network

    def _exact(self, models: Models) -> AbstractContextManager[None]:
        """Show weights in full precision to networks that add those of a file to them."""
        return precision.shown_as(torch.float32, models.values()) if self.weights else nullcontext()

    def _made(self, file: Path | None, vae: nn.Module | None, text_encoders: Any, denoiser: nn.Module) -> Any:
        """Let the module make its network, as if it were the only one of this process."""
        module = _import(self.module_name)
        class_values.reset(module, self.class_values)
        with self._guest("could not make its network"), _old_objects_left_alone():
            network = self._create(module, file, vae, text_encoders, denoiser)
        missing = [name for name in _MUST_HAVE if not callable(getattr(network, name, None))]
        if not isinstance(network, nn.Module) or missing:
            lack = ", ".join(missing) or "nn.Module's methods"
            raise UserError(
                f"--network_module {self.module_name} made a network without {lack}; use another module"
            )
        prepare: Any = getattr(network, "prepare_network", None)
        if prepare is not None:
            with self._guest("could not prepare its network"):
                prepare(argparse.Namespace(**self.options))
        return network

    def _create(
        self,
        module: ModuleType,
        file: Path | None,
        vae: nn.Module | None,
        text_encoders: Any,
        denoiser: nn.Module,
    ) -> Any:
        arguments: dict[str, Any] = {**self.arguments, **self.replaced}
        models = vae, text_encoders, denoiser
        if file:
            return module.create_network_from_weights(1, str(file), *models, **arguments)[0]
        arguments.setdefault("dropout", self.dropout)  # the name that LyCORIS reads
        return module.create_network(
            1.0, self.rank, self.alpha, *models, neuron_dropout=self.dropout, **arguments
        )

    def _guest(self, failed: str) -> AbstractContextManager[None]:
        remedy = "change --network_args"
        if self.weights:
            failed, remedy = (
                f"{failed} from {self.weights}",
                "give --network_args instead of --dim_from_weights",
            )
        return guest_code(f"{self._label} {failed}", remedy, passes=dry_run.lacks_numbers)

    def _require_layers(self, network: nn.Module) -> None:
        if not any(True for _ in network.parameters()):
            raise UserError(
                f"{self._label} adapts no layer of this model; choose another preset or algorithm"
            )


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Spare garbage collections, which LyCORIS' T-LoRA asks for at every layer, what is there already."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _import(name: str) -> ModuleType:
    try:
        with guest_code(f"--network_module {name} cannot be imported", "mend it", passes=_is_missing):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            how = (
                f"run {installing.command_for(name)}"
                if installing.is_renamed(name)
                else f"put its folder into PYTHONPATH, or run {installing.command('PACKAGE')}"
            )
            raise UserError(f"--network_module {name} is not known and cannot be imported; {how}") from None
        how = installing.command_for(error.name or name)
        raise UserError(f"--network_module {name} needs {error.name}, which is missing: run {how}") from None


def _is_missing(error: Exception) -> bool:
    return isinstance(error, ModuleNotFoundError)
