"""The small FLUX.1 transformer of recorded adapter cases."""

from typing import Any

from sfumato.models.families.flux.network import FluxShape
from tests.golden.derived import settings


def shape_of(params: dict[str, Any]) -> FluxShape:
    """Return the shape that recorded settings describe."""
    return FluxShape(
        hidden_size=params["hidden_size"],
        num_heads=params["num_heads"],
        depth=params["depth"],
        depth_single=params["depth_single_blocks"],
        in_channels=params["in_channels"],
        text_width=params["context_in_dim"],
        pooled_width=params["vec_in_dim"],
        mlp_hidden=int(params["hidden_size"] * params["mlp_ratio"]),
        axes_dim=tuple(params["axes_dim"]),
        guidance=params["guidance_embed"],
    )


SHAPE = shape_of(settings("e_net_flux")["model"])
