"""DoRA: a changed weight whose rows, or columns, have learned lengths (Liu et al., arXiv:2402.09353).

W' = g / |W + D| (W + D), where D is the change by any other kind. At strength m the weight is W + m (W' - W).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.adapters.layers.file_form import FileForm
from sfumato.adapters.layers.kind import read_only

NORMS = "dora_scale"
"""The lengths: (out, 1 ...) of what makes each output, (1, in, 1 ...) of what meets each input."""


def decomposed(weight: Tensor, norms: Tensor) -> Tensor:
    """Return a weight (out, in, ...) whose parts of each output, or input, have these norms."""
    by_input = norms.dim() > 1 and norms.shape[0] == 1 and norms.shape[1] == weight.shape[1]
    axis = 1 if by_input else 0
    rest = [dim for dim in range(weight.dim()) if dim != axis]
    found = torch.linalg.vector_norm(weight, dim=rest, keepdim=True).clamp(min=torch.finfo(weight.dtype).eps)
    return weight * (norms.float().reshape(found.shape) / found)


KIND = read_only(
    "dora",
    "DoRA",
    "a DoRA",
    FileForm(
        marks=(NORMS,),
        tensors=r"dora_scale|lora_(up|down|mid)\.weight|hada_(w[12]_[ab]|t[12])|lokr_(w[12](_[ab])?|t2)",
        ranks=("lora_down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b"),
        is_scaled=True,
        needs_weight=True,
    ),
)
