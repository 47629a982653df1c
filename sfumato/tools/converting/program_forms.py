"""The form of an adapter file of which another program loads most.

A file can be written with the names of sd-scripts or with those of diffusers; what a program makes of each is
known (`sfumato.adapters.files.programs`), so that the forms are made, judged and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.adapters.files.dialects import tucker
from sfumato.adapters.files.dialects.fusing import PART
from sfumato.adapters.files.dialects.halves import MARK
from sfumato.adapters.files.dialects.splitting import in_diffusers_names
from sfumato.adapters.files.programs.keys import by_layer
from sfumato.adapters.files.programs.told import PROGRAMS
from sfumato.adapters.files.programs.verdict import Verdict
from sfumato.adapters.files.sizes import shapes_of
from sfumato.adapters.layers.lora import PREFIX
from sfumato.errors import UserError
from sfumato.models.interface.layer_names import FamilyNames, flat

Layers = Mapping[str, Mapping[str, Tensor]]
"""Tensors of each layer, by our names."""

_TITLES = {name.lower(): name for name in PROGRAMS}
_OURS_OF_T5, _THEIRS_OF_T5 = f"{PREFIX}te3_", f"{PREFIX}te2_"
_FLAT_DENOISER = f"{PREFIX}transformer_"


@dataclass(frozen=True)
class Form:
    """One way to write an adapter, and what a program makes of it.

    Attributes:
        rest: layers that cannot be written so.
    """

    tensors: Mapping[str, Tensor]
    rest: Sequence[str]
    verdict: Verdict

    @property
    def lost(self) -> list[str]:
        """The layers that do not act in the program, or not wholly."""
        keys = [key for key in self.tensors if key not in self.verdict.loaded]
        return [*self.rest, *by_layer(keys)]

    @property
    def cost(self) -> tuple[int, int]:
        """What is to be small: how many layers are lost, then how much acts otherwise than here."""
        return len(self.lost), len(self.verdict.remarks)


def best_form(program: str, layers: Layers, names: FamilyNames | None) -> Form:
    """Return the form of which a program loads most, sd-scripts' names first where several are as good.

    Args:
        program: as `--for` has it.
        names: of the model's layers, if the denoiser is adapted.

    Raises:
        UserError: the program loads nothing of any form.
    """
    title = _TITLES[program]
    forms = [_judged(title, form) for form in _forms(layers, names)]
    best = min((form for form in forms if form.verdict.loaded), key=lambda form: form.cost, default=None)
    if best is None:
        why = next((form.verdict.refusal for form in forms if form.verdict.refusal), "")
        raise UserError(
            f"--for is {program}, but {title} loads nothing of this kind of adapter"
            + (f" ({why})" if why else "")
            + "; merge it into the model instead (sfumato merge)"
        )
    return best


def takes(program: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether a program, as `--for` has it, does not refuse a file with these tensors."""
    verdict = PROGRAMS[_TITLES[program]](shapes_of(tensors))
    return verdict is not None and not verdict.refusal


def _judged(title: str, form: tuple[dict[str, Tensor], list[str]]) -> Form:
    tensors, rest = form
    verdict = PROGRAMS[title](shapes_of(tensors))
    return Form(tensors, rest, verdict or Verdict())


def _forms(layers: Layers, names: FamilyNames | None) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    yield _in_our_names(layers, names)
    plain = {name: tucker.contracted(leaves) for name, leaves in layers.items()}
    yield _in_our_names(plain, names)
    if any(name.startswith(_OURS_OF_T5) for name in layers):
        yield _in_our_names({_renamed(name): leaves for name, leaves in plain.items()}, names)
    if names is not None:
        yield in_diffusers_names(plain, names)


def _renamed(name: str) -> str:
    return name.replace(_OURS_OF_T5, _THEIRS_OF_T5, 1) if name.startswith(_OURS_OF_T5) else name


def _in_our_names(layers: Layers, names: FamilyNames | None) -> tuple[dict[str, Tensor], list[str]]:
    """Return tensors under our keys; what was taken apart or turned round stays so, under its own name."""
    table = {PREFIX + layer.own: layer.diffusers for layer in names.layers} if names else {}
    found: dict[str, Tensor] = {}
    rest = []
    for name, leaves in layers.items():
        parts = [leaf for leaf in leaves if leaf.startswith(PART)]
        if not parts and MARK not in leaves:
            found |= {f"{name}.{leaf}": tensor for leaf, tensor in leaves.items()}
        elif name in table:
            found |= dict(_apart(leaves, table[name]))
        else:
            rest.append(name)
    return found, rest


def _apart(leaves: Mapping[str, Tensor], paths: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    for leaf, tensor in leaves.items():
        number, _, own = leaf.removeprefix(PART).partition(".") if leaf.startswith(PART) else ("0", "", leaf)
        if own != MARK:
            yield f"{_FLAT_DENOISER}{flat(paths[int(number)])}.{own}", tensor
