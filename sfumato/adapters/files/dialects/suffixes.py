"""The end of a tensor's key: which of a layer's tensors it is, in any program's naming.

What is left is the layer's path. Adapters of PEFT have names of their own, which stand before the last word
or at the end (`lora_A.default.weight`), and attention processors of diffusers name their layers `to_q_lora`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.adapters.files.dialects.owners import is_undotted
from sfumato.adapters.layers.lora import DOWN, UP

_MAGNITUDE = "magnitude"
"""A DoRA's norms of all outputs, of shape (out) or (1, out, 1, 1)."""
_FACTOR = "ia3_l"
"""What PEFT's IA3 multiplies by: (out, 1) or (1, in)."""

_LEAVES = {
    **dict.fromkeys(("lora_down.weight", "lora_A.weight", "lora_A"), DOWN),
    **dict.fromkeys(("lora_up.weight", "lora_B.weight", "lora_B"), UP),
    **dict.fromkeys(("lora.down.weight", "lora_linear_layer.down.weight"), DOWN),
    **dict.fromkeys(("lora.up.weight", "lora_linear_layer.up.weight"), UP),
    **dict.fromkeys(("lora_B.bias", "lora_up.bias"), "lora_up.bias"),
    **dict.fromkeys(("lora.alpha", "lora_linear_layer.alpha"), "alpha"),
    **dict.fromkeys(("lora_magnitude_vector", "lora_magnitude_vector.weight"), _MAGNITUDE),
    **{
        name: name
        for name in (
            *("alpha", "lora_mid.weight", "dora_scale", "scalar", _MAGNITUDE, _FACTOR),
            *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
            *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
            *(f"{name}.weight" for name in ("a1", "a2", "b1", "b2", "bm")),
            *("on_input", "diff", "diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight"),
            *("oft_blocks", "rescale", "oft_R.weight", "oft_R.scaled_oft"),
        )
    },
}
"""Our names of tensors by those of any program."""
_LONGEST = max(leaf.count(".") for leaf in _LEAVES) + 1
_PROCESSOR = re.compile(
    r"(?P<path>.+?)(?P<processor>\.processor)?\.(?P<name>\w+_lora\d?)\.(?P<leaf>(?:down|up)\.weight|alpha)"
)
_OF_XFLUX = re.compile(r"(?:qkv|proj)_lora\d?")
_SCALE = re.compile(r"(?P<path>.+norm)\.scale(?P<set>\.set_weight)?")
_BOOKKEEPING = re.compile(r"(?:.+\.)?_aux\..*")


@dataclass(frozen=True)
class Key:
    """A tensor's key.

    Attributes:
        path: the layer's, with whatever tells the part of the model.
        leaf: which of the layer's tensors it is, by our name if it has one.
        is_known: whether some program is known to write such a tensor.
    """

    path: str
    leaf: str
    is_known: bool = True


def is_bookkeeping(key: str) -> bool:
    """Return whether a tensor tells a trainer something that changes no layer."""
    return bool(_BOOKKEEPING.fullmatch(key))


def split(key: str) -> Key:
    """Return what a key speaks of."""
    if match := _PROCESSOR.fullmatch(key):
        return _of_processor(match)
    if match := _SCALE.fullmatch(key):  # the norms of FLUX's queries and keys: what replaces them
        return Key(match["path"], "set_weight")
    words = key.split(".")
    return _known(words) or _known(_unnamed(words, 2)) or _known(_unnamed(words, 1)) or _unknown(key)


def _unnamed(words: list[str], place: int) -> list[str]:
    """Return a key's words without the name in that place from the end; none where there is no name."""
    place = len(words) - place
    return words[:place] + words[place + 1 :] if place > 0 and not words[place].isdigit() else []


def _known(words: list[str]) -> Key | None:
    for count in range(min(_LONGEST, len(words) - 1), 0, -1):
        if leaf := _LEAVES.get(".".join(words[-count:])):
            return Key(".".join(words[:-count]), leaf)
    return None


def _of_processor(match: re.Match[str]) -> Key:
    path, name, leaf = match["path"], match["name"], match["leaf"]
    leaf = _LEAVES.get(f"lora.{leaf}", leaf)
    if _OF_XFLUX.fullmatch(name):
        return Key(f"{path}.processor.{name}", leaf)
    layer = name.removesuffix("_lora")
    return Key(f"{path}.{layer}.0" if layer == "to_out" and match["processor"] else f"{path}.{layer}", leaf)


def _unknown(key: str) -> Key:
    layer, _, rest = key.partition(".")
    if is_undotted(layer):
        return Key(layer, rest, is_known=False)
    path, _, leaf = key.rpartition(".")
    return Key(path, leaf, is_known=False)


def is_leaf(name: str) -> bool:
    """Return whether this is our name of a tensor that some program is known to write."""
    return name in _LEAVES.values()


def as_ours(leaf: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return one of a layer's tensors as our files have it; other programs shape norms, or count from 1."""
    if leaf == _MAGNITUDE:
        return {"dora_scale": tensor.reshape(-1, *[1] * max(1, tensor.dim() - 1))}
    if leaf == _FACTOR:
        is_on_input = tensor.dim() > 1 and tensor.shape[0] == 1 and tensor.shape[1] > 1
        return {"weight": tensor.flatten() - 1, "on_input": torch.tensor(is_on_input)}
    return {leaf: tensor}
