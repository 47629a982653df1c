"""A layer that is changed by formulas over a file's tensors; nothing of it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfumato.adapters.layers.file_form import Tensors
from sfumato.adapters.layers.formulas import composition, rows
from sfumato.adapters.layers.kinds import in_files, loading
from sfumato.adapters.layers.layer import NO_DROPOUTS, Dropouts, Strength, per_sample, with_parameters
from sfumato.errors import UserError
from sfumato.models.interface.targets import AdapterTarget

PREFIX = "lora_"


class FormulaLayer(nn.Module):
    """An adapter of any layer whose output is linear in its parameters: Linear, Conv2d, norms, embeddings.

    Its buffers are the file's tensors, by their names.
    """

    def __init__(self, target: AdapterTarget, tensors: Tensors) -> None:
        """Take a layer's tensors, as `read_adapter` returns them."""
        super().__init__()
        self.name = PREFIX + target.name
        self.target = target
        self.strength: Strength = 1.0
        for name, tensor in tensors.items():
            _hold(self, name, tensor)
        self._read_numbers()
        self.register_load_state_dict_post_hook(lambda *_: self._read_numbers())
        self.changed = tuple(map(self._own_name, composition.parameters_of(tensors)))

    @classmethod
    def from_tensors(
        cls, target: AdapterTarget, tensors: Tensors, dropouts: Dropouts = NO_DROPOUTS
    ) -> FormulaLayer:
        """Make the layer that a file's tensors describe.

        Raises:
            UserError: they do not fit the target, or one is missing or unknown.
        """
        layer = cls(target, tensors)
        _check_names(layer.name, tensors)
        _check_shape(layer.name, target, tensors)
        for name in layer.changed:
            layer._check(name)
        return layer

    @property
    def is_off(self) -> bool:
        """Whether an alpha of 0 switches the layer off."""
        return self._is_off

    def change(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return `output` with the layer's changes at work; see `AdapterLayer`."""
        if self.is_off or (isinstance(self.strength, float | int) and self.strength == 0):
            return output
        strength = 1.0 if isinstance(self.strength, Tensor) else self.strength
        own = self._applied(inputs, output.dtype, strength)
        if isinstance(self.strength, Tensor):
            own = own * per_sample(self.strength, own)
        return output + own.to(output.dtype)

    def delta(self) -> Tensor:
        """Return the change of the layer's weight at strength 1, shaped like the weight, in float32."""
        name = self._own_name("weight")
        if name in self.changed:
            return self.change_of(name, 1.0)
        return torch.zeros(self.target.module.get_parameter(name).shape)

    def change_of(self, name: str, strength: float) -> Tensor:
        """Return the change of a parameter of the target, in float32; see `ChangesParameters`."""
        tensors = self._tensors()
        own = self.target.module.get_parameter(name).detach()
        if self.is_off:
            return torch.zeros(own.shape, device=own.device)
        device = next((tensor.device for tensor in tensors.values() if tensor.dim()), own.device)
        if own.is_meta:  # a stand-in, of whose numbers the formula makes no use
            own = torch.zeros(own.shape)
        return self._change(name, tensors, own.to(device, torch.float32), strength)

    def plus_parameters(self) -> list[nn.Parameter]:
        """Return nothing: there is nothing to train."""
        return []

    def _applied(self, inputs: Tensor, dtype: torch.dtype, strength: float) -> Tensor:
        """Return what the target's changes alone would make of its input."""
        module = self.target.module
        changes = {name: self.change_of(name, strength).to(inputs.device, dtype) for name in self.changed}
        for name, parameter in module.named_parameters(recurse=False):
            if name not in changes:
                changes[name] = torch.zeros_like(parameter, dtype=dtype, device=inputs.device)
        # Not by calling it, which would call its adapters again, nor by a `forward` of its own weight.
        made: Tensor = type(module).forward(with_parameters(module, changes), inputs)
        return made

    def _change(self, name: str, tensors: Tensors, own: Tensor, strength: float) -> Tensor:
        parameter = "bias" if name == "bias" else "weight"
        return composition.change_of(tensors, parameter, own, strength, self.target.splits)

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.named_buffers()), **self._numbers}

    def _read_numbers(self) -> None:
        """Read single numbers once: reading them in every step would make the device wait."""
        tensors = dict(self.named_buffers())
        self._numbers = {name: value.cpu().float() for name, value in tensors.items() if not value.dim()}
        kind = loading(tensors, self.name)
        is_switch = kind is not None and kind.files.is_off_at_0
        self._is_off = is_switch and float(self._numbers.get("alpha", 1.0)) == 0

    def _own_name(self, parameter: str) -> str:
        """Return what the target calls its weight or bias; some norms call their weight otherwise."""
        own = [name for name, _ in self.target.module.named_parameters(recurse=False)]
        return parameter if parameter in own or parameter == "bias" else own[0]

    def _check(self, name: str) -> None:
        """Raise UserError if the target lacks a parameter, or its change has another shape."""
        own = dict(self.target.module.named_parameters(recurse=False)).get(name)
        if own is None:
            raise UserError(f"{self.name} changes a {name}, which this model lacks; use a file made for it")
        tensors = {key: value.to("meta") if value.dim() else value for key, value in self._tensors().items()}
        try:
            self._change(name, tensors, torch.empty(own.shape, device="meta"), 1.0)
        except (RuntimeError, ValueError, IndexError) as error:
            sides = "x".join(map(str, own.shape))
            raise UserError(
                f"{self.name} does not fit this model, whose {name} there is {sides}; use a file made for it"
            ) from error


def _hold(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a module a buffer; modules stand for what lies before the dots of its name."""
    first, dot, rest = name.partition(".")
    if not dot:
        module.register_buffer(first, tensor)
        return
    if first not in dict(module.named_children()):
        module.add_module(first, nn.Module())
    _hold(module.get_submodule(first), rest, tensor)


def _check_names(layer: str, tensors: Tensors) -> None:
    for part in (tensors, *rows.parts_of(tensors).values()):
        missing = next((name for kind in in_files() if (name := kind.files.missing(part))), None)
        if missing:
            raise UserError(f"{layer} has {', '.join(sorted(part))} without {missing}; use another file")
    unknown = composition.unknown(tensors)
    if unknown or not composition.parameters_of(tensors):
        found = unknown[0] if unknown else next(iter(tensors))
        raise UserError(f"{layer} holds {found}, which is not known here; use another file")


def _check_shape(layer: str, target: AdapterTarget, tensors: Tensors) -> None:
    wanted = tuple(map(int, tensors[composition.SHAPE])) if composition.SHAPE in tensors else None
    own = tuple(next(target.module.parameters(recurse=False)).shape)
    if wanted not in (None, own):
        sides, others = ("x".join(map(str, shape)) for shape in (wanted or (), own))
        raise UserError(
            f"{layer} needs a weight of {sides}, where this model has {others}: it is for a model with more "
            "inputs (a control LoRA, for instance); use another file"
        )
