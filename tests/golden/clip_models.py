"""The small text encoders of the recorded cases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sfumato.models.components import text_encoders
from sfumato.models.components.tensor_views import TensorView
from tests import tiny
from tests.golden.derived import weight


def clip_encoder(fixture: Mapping[str, Any], model: Mapping[str, Any]) -> nn.Module:
    """Return the text encoder that a case of a fixture describes."""
    projection = model.get("projection_dim", 0)
    shapes = dict(tiny.clip_l(49_408, model["hidden"], model["layers"], model.get("intermediate")))
    if projection:
        shapes["text_projection.weight"] = (projection, model["hidden"])
    prefix = fixture.get("key_prefix", "") + model.get("key_prefix", "")
    values = {name: weight(prefix + name, shape, fixture["weight_std"]) for name, shape in shapes.items()}
    return text_encoders.load_clip_view(
        TensorView(Path("derived"), shapes, values.__getitem__),
        torch.float32,
        torch.device("cpu"),
        activation=model["act"],
        num_heads=model["heads"],
        has_projection=bool(projection),
    )
