"""Convolutional LoRAs in three factors, which most programs do not know, in two."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfumato.adapters.layers.lora import DOWN

CORE = "lora_mid.weight"


def contracted(leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer's tensors, `mid` (r, r, h, w) and `down` (r, in, 1, 1) being one `down` (r, in, h, w).

    The change is the same, and so is the rank. What does not fit together is left as it is.
    """
    if CORE not in leaves or leaves[CORE].shape[1] != leaves[DOWN].shape[0]:
        return dict(leaves)
    core, down = leaves[CORE].float(), leaves[DOWN].flatten(1).float()
    whole = torch.einsum("abhw,bi->aihw", core, down).to(leaves[DOWN].dtype)
    return {leaf: whole if leaf == DOWN else tensor for leaf, tensor in leaves.items() if leaf != CORE}
