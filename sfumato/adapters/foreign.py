"""Network modules of other projects (LyCORIS, a user's own file) behind the same interface as our adapters.

Such a module offers `create_network` and `create_network_from_weights`; what they return is an `nn.Module`
with `apply_to`, `prepare_optimizer_params`, `save_weights` and so on, as sd-scripts defined them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from sfumato import installing
from sfumato.adapters.layer import Strength
from sfumato.adapters.network import Network, norm_figures
from sfumato.adapters.rates import ParameterGroup
from sfumato.adapters.renaming import Names, copy_by_path, names_in_files, rename_file, renamed, unknown
from sfumato.checkpoints.tensors import require_finite_file
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.family import DENOISER, VAE, Family

logger = logging.getLogger(__name__)

_MUST_HAVE = ("apply_to", "load_weights", "prepare_optimizer_params", "save_weights")


@dataclass(frozen=True)
class ForeignPlan:
    """A network of somebody else's module, to be built once the model is there.

    Attributes:
        module_name: as given with `--network_module`.
        arguments: `--network_args`, all as text.
        rank, alpha, dropout: as given, None where not.
        weights: file to take the network's shape from (`--dim_from_weights`), or None.
        start: file to load into the network, or None.
        options: all options of the run, for modules that ask for them.
        replaced: arguments that the module gets instead of those that were given.
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

    def check(self) -> None:
        """Raise UserError unless the module can be imported and offers what is needed."""
        function = "create_network_from_weights" if self.weights else "create_network"
        if not callable(getattr(_import(self.module_name), function, None)):
            raise UserError(f"--network_module {self.module_name} has no {function}; use another module")

    def parts(self, family: Family) -> list[str]:
        """Return the names of the parts that may be adapted, text encoders first."""
        texts = list(family.text_outputs) if self.trains_text_encoders else []
        return [*texts, DENOISER] if self.trains_denoiser else texts

    def build(self, family: Family, models: Mapping[str, nn.Module]) -> Network:
        """Make the network; a part that is not in `models` is stood in for by an empty module.

        Raises:
            UserError: the module makes no network, or one that lacks something.
        """
        texts = [models.get(part, nn.Module()) for part in family.text_outputs]
        text_encoders = texts[0] if len(texts) == 1 else texts
        denoiser = models.get(DENOISER, nn.Module())
        names = names_in_files(family, models)
        network = self._create(models.get(VAE), text_encoders, denoiser, names)
        missing = [name for name in _MUST_HAVE if not callable(getattr(network, name, None))]
        if not isinstance(network, nn.Module) or missing:
            lack = ", ".join(missing) or "nn.Module's methods"
            raise UserError(
                f"--network_module {self.module_name} made a network without {lack}; use another module"
            )
        prepare: Any = getattr(network, "prepare_network", None)
        if prepare is not None:
            prepare(argparse.Namespace(**self.options))
        wrapped = ForeignNetwork(
            network, text_encoders, denoiser, self.trains_text_encoders, self.trains_denoiser, names
        )
        wrapped.attach()  # these networks make their parameters known only when applied
        if rest := unknown(network.state_dict(), names):
            number = counted(len(rest), "layer is", "layers are")
            logger.info("%s saved under the module's own names (%s ...)", number, rest[0])
        if self.start:
            wrapped.load(self.start)
        return wrapped

    def _create(self, vae: nn.Module | None, text_encoders: Any, denoiser: nn.Module, names: Names) -> Any:
        module = _import(self.module_name)
        arguments: dict[str, Any] = {**self.arguments, **self.replaced}
        try:
            if self.weights:
                with copy_by_path(self.weights, names) as file:
                    made = module.create_network_from_weights(
                        1, str(file), vae, text_encoders, denoiser, **arguments
                    )
                return made[0]
            arguments.setdefault("dropout", self.dropout)  # the name that LyCORIS reads
            return module.create_network(
                1.0,
                self.rank,
                self.alpha,
                vae,
                text_encoders,
                denoiser,
                neuron_dropout=self.dropout,
                **arguments,
            )
        except AssertionError as error:  # the way in which such modules speak of wrong arguments
            reason = str(error) or "it gives no reason"
            raise UserError(
                f"--network_module {self.module_name} refuses --network_args: {reason}; change them"
            ) from error


class ForeignNetwork:
    """One network of somebody else's, as training sees it."""

    def __init__(
        self,
        network: Any,
        text_encoders: Any,
        denoiser: nn.Module,
        trains_text_encoders: bool = True,
        trains_denoiser: bool = True,
        names: Names | None = None,
    ) -> None:
        """Take a network that is not applied yet.

        Args:
            network: what the module made.
            text_encoders: what the module was given: one, or a list.
            names: of layers in files, by their names in the network's state.
        """
        self._names = names or {}
        self._network = network
        self._text_encoders = text_encoders
        self._denoiser = denoiser
        self._trained = (trains_text_encoders, trains_denoiser)
        self._is_applied = False

    @property
    def trainable(self) -> nn.Module:
        """The foreign network itself."""
        return self._network

    def attach(self) -> None:
        """Apply the network the first time, and give it its full strength later."""
        if self._is_applied:
            self.set_strength(1.0)
            return
        self._network.apply_to(self._text_encoders, self._denoiser, *self._trained)
        self._network.prepare_grad_etc(self._text_encoders, self._denoiser)
        self._is_applied = True

    def detach(self) -> None:
        """Set the strength to 0: the interface knows no way to take a network out again."""
        if self._is_applied:
            self.set_strength(0.0)

    def set_strength(self, strength: Strength) -> None:
        """Set one strength for the whole batch; the interface knows no strength per sample."""
        if isinstance(strength, Tensor):
            strength = _common(strength)
        if hasattr(self._network, "set_multiplier"):
            self._network.set_multiplier(strength)
        elif strength != 1.0:
            raise UserError(
                "this --network_module has one strength only; leave strengths (network_multiplier) at 1"
            )

    def parameter_groups(
        self, default_lr: float | None, denoiser_lr: float | None, text_encoder_lrs: Sequence[float] | None
    ) -> list[ParameterGroup]:
        """Return the groups that the network makes, without those whose rate is 0."""
        made = self._prepared(default_lr, denoiser_lr, list(text_encoder_lrs) if text_encoder_lrs else None)
        groups, names = made if isinstance(made, tuple) else (made, None)
        converted = [
            _group(group, names[i] if names else f"group{i}", default_lr) for i, group in enumerate(groups)
        ]
        return [group for group in converted if group.parameters and group.learning_rate != 0]

    def enable_checkpointing(self) -> None:
        """Tell the network."""
        self._network.enable_gradient_checkpointing()

    def on_epoch_start(self) -> None:
        """Tell the network, which switches to training mode."""
        self._network.on_epoch_start(self._text_encoders, self._denoiser)

    def on_step_start(self) -> None:
        """Tell the network if it wants to know."""
        if hasattr(self._network, "on_step_start"):
            self._network.on_step_start(self._text_encoders, self._denoiser)

    def on_step_end(self) -> dict[str, Tensor]:
        """Do nothing: the interface does not know of it."""
        return {}

    def memory(self) -> dict[str, Tensor]:
        """Return nothing: the network's state holds all it remembers."""
        return {}

    @property
    def can_limit_norms(self) -> bool:
        """Whether the network's makers thought of it."""
        return hasattr(self._network, "apply_max_norm_regularization")

    def limit_norms(self, limit: float) -> dict[str, Tensor]:
        """Let the network scale its weights."""
        device = next(self._network.parameters()).device
        figures = self._network.apply_max_norm_regularization(limit, device)
        return norm_figures(*(torch.as_tensor(figure, device=device) for figure in figures))

    def save(self, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Let the network write its file beside `path`, and rename it when it is complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        try:
            self._network.save_weights(str(temporary), dtype, dict(metadata))
            require_finite_file(temporary, path)
            if self._is_renamed:
                rename_file(temporary, self._names)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, path: Path) -> str:
        """Let the network load a file; it decides what fits."""
        if not path.exists():
            raise UserError(f"{path} does not exist; check the path")
        with copy_by_path(path, self._names) as file:
            return f"{path}: {self._network.load_weights(str(file))}"

    def describe(self) -> str:
        """Return the class and the number of values that it trains."""
        count = sum(parameter.numel() for parameter in self._network.parameters())
        return f"{type(self._network).__module__}.{type(self._network).__name__} trains {count:,} values"

    @property
    def _is_renamed(self) -> bool:
        """Whether the network has layers that files name otherwise."""
        keys = list(self._network.state_dict())
        return any(renamed(key, self._names) != key for key in keys)

    def _prepared(
        self, default_lr: float | None, denoiser_lr: float | None, text_lrs: list[float] | None
    ) -> Any:
        if hasattr(self._network, "prepare_optimizer_params_with_multiple_te_lrs"):
            return self._network.prepare_optimizer_params_with_multiple_te_lrs(
                text_lrs, denoiser_lr, default_lr
            )
        prepare = self._network.prepare_optimizer_params
        rates = (text_lrs[0] if text_lrs else None, denoiser_lr, default_lr)
        try:
            inspect.signature(prepare).bind(*rates)
        except TypeError:  # older modules know no default rate
            return prepare(*rates[:2])
        return prepare(*rates)


def _import(name: str) -> ModuleType:
    try:
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


def _common(strengths: Tensor) -> float:
    first = float(strengths[0])
    if not bool((strengths == strengths[0]).all()):
        raise UserError(
            "this --network_module needs one network_multiplier per batch; train such data sets apart"
        )
    return first


def _group(group: Mapping[str, Any], name: str, default_lr: float | None) -> ParameterGroup:
    rest = {key: value for key, value in group.items() if key not in ("params", "lr")}
    return ParameterGroup(list(group["params"]), group.get("lr", default_lr), name, rest)
