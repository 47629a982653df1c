"""LyCORIS' OFT and BOFT: outputs rotated in blocks, once or along a butterfly (arXiv:2306.07280, 2311.06243).

They differ from sd-scripts' OFT: an alpha of 0 sets no limit to how far they turn, a learned factor of each
output may follow, and BOFT goes through several stages. Stage i takes outputs apart by strides of 2^i half
blocks, so that blocks mix what earlier stages kept apart. At strength m each stage is (1 - m) I + m R.
"""

from __future__ import annotations

from torch import Tensor

from sfumato.adapters.layers.file_form import FileForm, Tensors, Term
from sfumato.adapters.layers.kind import read_only
from sfumato.adapters.layers.rotation import turn_of

_BLOCKS, _RESCALE = "oft_blocks", "rescale"
_LEAST = 1e-8  # LyCORIS' way not to divide by 0


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    blocks, limit = tensors[_BLOCKS].float(), float(tensors.get("alpha", 0.0)) * own.shape[0]
    skew = _limited(blocks - blocks.mT, limit)
    matrix = own.flatten(1)
    if blocks.dim() == 4:
        for index, stage in enumerate(-skew):  # R is the other way round there
            matrix = _butterfly(stage, matrix, index, strength)
    else:
        matrix = _rotated(skew, matrix, strength)
    if _RESCALE in tensors:
        matrix = matrix * (1 + strength * (tensors[_RESCALE].float().reshape(-1, 1) - 1))
    return matrix - own.flatten(1)


def _limited(skew: Tensor, limit: float) -> Tensor:
    """Return Q scaled down to the norm that all of it may have; a limit of 0 is none."""
    if limit <= 0:
        return skew
    return skew * (limit / (skew.norm() + _LEAST)).clamp(max=1)


def _butterfly(skew: Tensor, matrix: Tensor, index: int, strength: float) -> Tensor:
    """Return the rows of `matrix` (out, n) after one stage; skew: (blocks, size, size)."""
    stride = skew.shape[-1] // 2 << index
    paired = matrix.unflatten(0, (-1, 2, stride)).transpose(1, 2).flatten(0, 2)
    mixed = _rotated(skew, paired, strength)
    return mixed.unflatten(0, (-1, stride, 2)).transpose(1, 2).flatten(0, 2)


def _rotated(skew: Tensor, matrix: Tensor, strength: float) -> Tensor:
    """Return the rows of `matrix` (out, n), each block of them turned."""
    pieces = matrix.unflatten(0, skew.shape[:2])
    return matrix + (turn_of(skew) @ pieces).flatten(0, 1) * strength


KIND = read_only(
    "lycoris_oft",
    "OFT of LyCORIS",
    "an OFT network of LyCORIS",
    FileForm(
        marks=(_BLOCKS,),
        tensors=f"{_BLOCKS}|{_RESCALE}",
        is_off_at_0=False,
        needs_weight=True,
        terms=(Term("weight", (_BLOCKS,), _change, (_RESCALE,)),),
    ),
)
