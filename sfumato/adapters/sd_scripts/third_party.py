"""Networks that others' modules made (LyCORIS, a user's own) behind the same interface as our adapters.

Such a network is an `nn.Module` with `apply_to`, `prepare_optimizer_params`, `save_weights` and so on, as
sd-scripts defined them. Its state need not be what it trains: it may be made of that, and not the other way
round. So what a run must remember is read off its parameters and buffers.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.adapters.files.key_names import Names, copy_by_path, rename_file, renamed
from sfumato.adapters.layers.layer import Strength
from sfumato.adapters.network.network import UNSAVED, norm_figures
from sfumato.adapters.network.rates import ParameterGroup
from sfumato.adapters.sd_scripts import trial_inputs
from sfumato.checkpoints.atomic import rename, temporary_name
from sfumato.checkpoints.tensors import open_tensors, require_finite_file
from sfumato.errors import UserError, guest_code
from sfumato.log import counted
from sfumato.nn import dry_run

logger = logging.getLogger(__name__)


class ForeignNetwork:
    """One network of somebody else's, as training sees it."""

    def __init__(
        self,
        network: Any,
        label: str,
        text_encoders: Any,
        denoiser: nn.Module,
        trains_text_encoders: bool = True,
        trains_denoiser: bool = True,
        names: Names | None = None,
    ) -> None:
        """Take a network that is not applied yet.

        Args:
            network: what the module made.
            label: what errors are about: the option that named the module, and its arguments.
            text_encoders: what the module was given: one, or a list.
            names: of layers in files, by their names in the network's state.
        """
        self._names = names or {}
        self._label = label
        self._network = network
        self._text_encoders = text_encoders
        self._denoiser = denoiser
        self._trained = (trains_text_encoders, trains_denoiser)
        self._is_applied = False
        self._replaced: list[tuple[str, nn.Module]] = []

    @property
    def trainable(self) -> nn.Module:
        """The foreign network itself."""
        return self._network

    def attach(self) -> None:
        """Apply the network the first time, and give it its full strength later."""
        if self._is_applied:
            self.set_strength(1.0)
            return
        layers = list(self._layers())
        before = [vars(layer).get("forward") for _, layer in layers]
        with self._guest("could not be applied to the model", "change --network_args"):
            self._network.apply_to(self._text_encoders, self._denoiser, *self._trained)
            self._network.prepare_grad_etc(self._text_encoders, self._denoiser)
        self._replaced = [
            (path, layer)
            for (path, layer), forward in zip(layers, before, strict=True)
            if vars(layer).get("forward") is not forward
        ]
        for path, layer in self._replaced:
            layer.forward = partial(_watched, f"{self._label} failed in {path}", layer.forward)
        self._is_applied = True

    def try_layers(self, device: torch.device) -> None:
        """Compute without numbers what a layer of each kind makes of an input, as the network changes it.

        Args:
            device: of the model; a network for the meta device goes there.

        Raises:
            UserError: the network cannot work on such a layer.
        """
        if device.type == "meta":
            self._network.to(device)
        kinds = {trial_inputs.kind_of(layer): (path, layer) for path, layer in reversed(self._replaced)}
        for path, layer in kinds.values():
            inputs = trial_inputs.input_for(layer, device)
            if inputs is not None:
                self._try_layer(path, layer, inputs)

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
        with self._guest("could not tell what it trains", "change learning rates or --network_args"):
            made = self._prepared(
                default_lr, denoiser_lr, list(text_encoder_lrs) if text_encoder_lrs else None
            )
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

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers, and what else of the network's state is live; see `Network`."""
        unsaved = _unsaved(self._network)
        yield from self._network.named_parameters()
        for name, buffer in self._network.named_buffers():
            yield f"{UNSAVED}{name}" if name in unsaved else name, buffer
        if self._kept_elsewhere:
            state = self._network.state_dict(keep_vars=True)
            yield from ((name, state[name]) for name in self._kept_elsewhere)

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
        temporary = temporary_name(path, path.suffix)
        try:
            with self._guest(f"could not save {path}"):
                self._network.save_weights(str(temporary), dtype, dict(metadata))
            require_finite_file(temporary, path)
            if self._is_renamed(temporary):
                rename_file(temporary, self._names)
            rename(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def snapshot(self, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Return None: the network writes its weights itself."""

    def load(self, path: Path) -> str:
        """Let the network load a file; it decides what fits."""
        if not path.exists():
            raise UserError(f"{path} does not exist; check the path")
        before = {name: buffer.clone() for name, buffer in self._network.named_buffers()}
        with copy_by_path(path, self._names) as file:
            with self._guest(f"could not load {path}", "give the --network_args it was trained with"):
                told = self._network.load_weights(str(file))
            self._require_taken(path, file)
        self._tell_of_alphas(path, before)
        return f"{path}: {told}"

    def describe(self) -> str:
        """Return the class and the number of values that it trains."""
        count = sum(parameter.numel() for parameter in self._network.parameters())
        return f"{type(self._network).__module__}.{type(self._network).__name__} trains {count:,} values"

    def _try_layer(self, path: str, layer: nn.Module, inputs: Tensor) -> None:
        remedy = "choose a preset without such layers, or other arguments"
        try:
            with self._guest(f"cannot work on {path}", remedy), torch.no_grad():
                layer(inputs)
        except (RuntimeError, TypeError) as error:
            if not dry_run.lacks_numbers(error):
                raise

    @cached_property
    def _kept_elsewhere(self) -> list[str]:
        """Names of tensors in the network's state that are live, but neither parameters nor buffers.

        What a state makes of others lies somewhere else each time.
        """
        own = {_place(tensor) for tensor in (*self._network.parameters(), *self._network.buffers())}
        state = self._network.state_dict(keep_vars=True)
        others = {k: v for k, v in state.items() if isinstance(v, Tensor) and _place(v) not in own}
        again = self._network.state_dict(keep_vars=True) if others else {}
        return [name for name, tensor in others.items() if _place(again[name]) == _place(tensor)]

    def _require_taken(self, path: Path, file: Path) -> None:
        """Raise UserError unless the network's state is about what the file says: modules pass over much."""
        state = self._network.state_dict()
        remedy = "give the --network_args it was trained with, or --dim_from_weights"
        with open_tensors(file) as reader:
            keys = reader.keys()
            shared = [key for key in keys if key in state]
            if not shared:
                raise UserError(f"{self._label} knows nothing of {path}; {remedy}")
            if not all(dry_run.has_numbers(state[key]) for key in shared):
                return
            left = [key for key in shared if not _is_about(state[key], reader.get(key))]
        if left:
            raise UserError(f"{self._label} did not take {left[0]} from {path}; {remedy}")
        for what, rest in (
            ("%s has nothing for %s of the network (%s ...)", [key for key in state if key not in shared]),
            ("%s has %s that the network knows nothing of (%s ...)", [k for k in keys if k not in state]),
        ):
            if rest:
                logger.warning(what, path, counted(len(rest), "tensor"), rest[0])

    def _tell_of_alphas(self, path: Path, before: Mapping[str, Tensor]) -> None:
        """Warn where a file has other alphas than the run: modules write them down and act by their own."""
        changed = [
            (name, before[name], buffer)
            for name, buffer in self._network.named_buffers()
            if name.endswith("alpha")
            and dry_run.has_numbers(buffer)
            and not torch.equal(buffer, before[name])
        ]
        for name, own, told in changed[:1]:
            logger.warning(
                "%s says %g for %s, which is %g in this run: give --network_alpha as the file has it",
                *(path, told.item(), name, own.item()),
            )

    def _guest(self, failed: str, remedy: str = "") -> AbstractContextManager[None]:
        return guest_code(f"{self._label} {failed}", remedy, passes=dry_run.lacks_numbers)

    def _layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield every module that the network may act on, by a path for people."""
        texts = self._text_encoders if isinstance(self._text_encoders, list) else [self._text_encoders]
        for model in (*texts, self._denoiser):
            for path, module in model.named_modules():
                yield f"{type(model).__name__}.{path}" if path else type(model).__name__, module

    def _is_renamed(self, file: Path) -> bool:
        """Whether the network named layers otherwise than files do."""
        with open_tensors(file) as reader:
            return any(renamed(key, self._names) != key for key in reader.keys())  # noqa: SIM118 - no mapping

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


def _watched(what: str, forward: Any, *inputs: Any, **options: Any) -> Any:
    """Run a layer as a network has replaced it; what is wrong with it is one line."""
    if torch.compiler.is_compiling():
        return forward(*inputs, **options)
    with guest_code(what, "leave such layers out by --network_args", passes=_is_no_fault_of_a_layer):
        return forward(*inputs, **options)


def _is_no_fault_of_a_layer(error: Exception) -> bool:
    """Return whether an error may be the device's, PyTorch's, or the death of a process that loads data."""
    return isinstance(error, RuntimeError | OSError | EOFError) or type(error).__module__.startswith("torch")


def _unsaved(network: nn.Module) -> set[str]:
    """Return the names of the buffers that a network leaves out of its state."""
    return {
        f"{path}.{name}" if path else name
        for path, module in network.named_modules()
        for name in module._non_persistent_buffers_set
    }


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_about(tensor: Tensor, told: Tensor) -> bool:
    """Return whether a tensor is another but for rounding; a few states are differences of large numbers."""
    if tensor.shape != told.shape:
        return False
    told = told.to("cpu", torch.float64)
    difference = (tensor.detach().to("cpu", torch.float64) - told).abs()
    return not told.numel() or bool(difference.max() <= 1e-2 * told.abs().max() + 1e-5)
