"""What must hold of an adapter file's tensors before anything is made of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from torch import Tensor

from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.file_form import FileForm
from sfumato.checkpoints.finite import is_finite
from sfumato.errors import UserError

_MATRIX = re.compile(
    r"lora_(up|down)\.weight|hada_w[12]_[ab]|lokr_w[12](_[ab])?|[ab][12]\.weight|oft_R\.weight"
)
_KERNEL = re.compile(r"lora_mid\.weight|hada_t[12]|lokr_t2|bm\.weight")
_BLOCKS = "oft_blocks"
_CHANGE = re.compile(r"diff(_b)?|[bw]_norm")
_NUMBER = re.compile(r"alpha|scalar|on_input")


def require_sound(path: Path, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Look at all of an adapter file's tensors.

    Args:
        path: the file, for messages.
        layers: the tensors of each layer, by our names; the layers as the file names them.

    Raises:
        UserError: a layer lacks a tensor, the halves of a LoRA do not fit together, a tensor holds values
            that are no numbers; or as `require_well_formed` says.
    """
    for name, leaves in layers.items():
        if missing := _missing(leaves):
            raise UserError(
                f"{path}: {name} has {', '.join(sorted(leaves))} without {missing}; use another file"
            )
    require_well_formed(path, layers)
    for name, leaves in layers.items():
        _check_halves(path, name, leaves)
    for name, leaves in layers.items():
        for leaf, tensor in leaves.items():
            if not is_finite(tensor):
                raise UserError(
                    f"{path}: {name}.{leaf} holds values that are no numbers (NaN or inf); use another file"
                )


def require_well_formed(path: Path, layers: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Look at the shapes of an adapter file's tensors, each by itself; see `require_sound`.

    Raises:
        UserError: a tensor is empty, an alpha is not one number, or a factor is no matrix.
    """
    for name, leaves in layers.items():
        for leaf, tensor in leaves.items():
            _check_shape(path, f"{name}.{leaf}", leaf, tensor)


def _check_shape(path: Path, key: str, leaf: str, tensor: Tensor) -> None:
    sides = "x".join(map(str, tensor.shape)) or "a number"
    if not tensor.numel():
        raise UserError(f"{path}: {key} is empty; the file is damaged, so use another")
    if _NUMBER.fullmatch(leaf) and tensor.numel() > 1:
        raise UserError(f"{path}: {key} holds {tensor.numel()} values instead of one; use another file")
    if _MATRIX.fullmatch(leaf) and tensor.dim() < 2:
        raise UserError(f"{path}: {key} is {sides} and no matrix; the file is damaged, so use another")
    if _CHANGE.fullmatch(leaf) and not tensor.dim():
        raise UserError(f"{path}: {key} is {sides} and no weight; the file is damaged, so use another")
    if leaf == _BLOCKS and tensor.dim() < 3:
        raise UserError(f"{path}: {key} is {sides} and no matrices; the file is damaged, so use another")
    if _KERNEL.fullmatch(leaf) and tensor.dim() != 4:
        raise UserError(f"{path}: {key} is {sides} and no kernel; the file is damaged, so use another")
    if leaf == "reshape_weight" and tensor.dim() != 1:
        raise UserError(f"{path}: {key} is {sides} and no list of sides; use another file")


def _missing(leaves: Collection[str]) -> str | None:
    """Return a tensor that a layer with these needs and lacks."""
    return next((name for form in _forms(leaves) if (name := form.missing(leaves))), None)


def _forms(leaves: Collection[str]) -> list[FileForm]:
    """Return what may hold of a layer: of a damaged one, no tensor that tells its kind may be left."""
    kind = kinds.told_by(leaves)
    own = [each.files for each in kinds.in_files()]
    return own if kind is None or kind.files in own else [*own, kind.files]


def _check_halves(path: Path, name: str, leaves: Mapping[str, Tensor]) -> None:
    for down, up in (pair for form in _forms(leaves) for pair in form.halves):
        if down not in leaves:
            continue
        shapes = leaves[down].shape, leaves[up].shape
        if min(map(len, shapes)) < 2 or shapes[0][0] != shapes[1][1]:
            sides = " and ".join("x".join(map(str, shape)) for shape in shapes)
            raise UserError(f"{path}: the halves of {name}, {sides}, do not fit together; use another file")
