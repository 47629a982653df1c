"""What must hold of an adapter file's tensors before anything is made of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files import other_programs
from sfumato.checkpoints.finite import is_finite
from sfumato.errors import UserError

_HALVES = {
    "lora_down.weight": "lora_up.weight",
    "lora_A.weight": "lora_B.weight",
    "lora_A.default.weight": "lora_B.default.weight",
    "lora.down.weight": "lora.up.weight",
}
"""Both halves of a LoRA, down first, in the namings of various programs."""

_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_GROUPS = (
    *_HALVES.items(),
    _LOHA,
    ("hada_t1", "hada_t2"),
    *((f"lokr_w{i}_a", f"lokr_w{i}_b") for i in (1, 2)),
)
"""Tensors of a layer that come together."""
_LOKR = (("lokr_w1", "lokr_w1_a"), ("lokr_w2", "lokr_w2_a"))
"""The two factors of a LoKr, whole or as the first of two halves."""


def require_sound(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Look at all of an adapter file's tensors.

    Args:
        path: the file, for messages.
        tensors: by their keys in the file, in any program's naming.

    Raises:
        UserError: one is empty or holds values that are no numbers, an alpha is not one number, a layer lacks
            a tensor, or the halves of a LoRA do not fit together.
    """
    for key, tensor in tensors.items():
        if not tensor.numel():
            raise UserError(f"{path}: {key} is empty; the file is damaged, so use another")
        if key.endswith(".alpha") and tensor.numel() > 1:
            raise UserError(f"{path}: {key} holds {tensor.numel()} values instead of one; use another file")
        if not is_finite(tensor):
            raise UserError(f"{path}: {key} holds values that are no numbers (NaN or inf); use another file")
    for name, keys in other_programs.by_layer(tensors).items():
        leaves = {key.removeprefix(f"{name}."): tensors[key] for key in keys}
        if missing := _missing(leaves):
            raise UserError(
                f"{path}: {name} has {', '.join(sorted(leaves))} without {missing}; use another file"
            )
        _check_halves(path, name, leaves)


def _missing(leaves: Iterable[str]) -> str | None:
    """Return a tensor that a layer with these needs and lacks."""
    own = set(leaves)
    groups = [group for group in _GROUPS if own & set(group)]
    if any(leaf.startswith("lokr_") for leaf in own):
        groups += [factor[:1] for factor in _LOKR if not own & set(factor)]
    return next((leaf for group in groups for leaf in group if leaf not in own), None)


def _check_halves(path: Path, name: str, leaves: Mapping[str, Tensor]) -> None:
    for down, up in _HALVES.items():
        if down not in leaves:
            continue
        shapes = leaves[down].shape, leaves[up].shape
        if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
            sides = " and ".join("x".join(map(str, shape)) for shape in shapes)
            raise UserError(f"{path}: the halves of {name}, {sides}, do not fit together; use another file")
