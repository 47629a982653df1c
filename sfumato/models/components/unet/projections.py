"""The projections around a UNet's transformers: Linear layers or 1x1 convolutions, which compute the same."""

from __future__ import annotations

import re
from dataclasses import replace

from torch import Tensor

from sfumato.models.components.tensor_views import TensorView

_PROJECTION = re.compile(r"\.proj_(in|out)\.weight$")


def with_projections(view: TensorView, *, is_linear: bool) -> TensorView:
    """Return a UNet's tensors with the weights of these projections as (out, in), or as (out, in, 1, 1)."""
    is_other = {
        name
        for name, shape in view.shapes.items()
        if _PROJECTION.search(name) and (len(shape) == 4) is is_linear
    }

    def get(name: str) -> Tensor:
        tensor = view.get(name)
        if name not in is_other:
            return tensor
        return tensor.flatten(1) if is_linear else tensor[:, :, None, None]

    def shape(name: str) -> tuple[int, ...]:
        own = view.shapes[name]
        return own if name not in is_other else own[:2] if is_linear else (*own, 1, 1)

    return replace(view, shapes={name: shape(name) for name in view.shapes}, get=get)
