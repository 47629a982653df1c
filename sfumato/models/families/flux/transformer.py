"""FLUX.1 transformers in files."""

from __future__ import annotations

from pathlib import Path

from sfumato.models.components.dit.transformer_file import TransformerFormat
from sfumato.models.components.loading import sizes_of
from sfumato.models.components.tensor_views import Shapes
from sfumato.models.families.flux.keys import table_for
from sfumato.models.families.flux.network import Flux, FluxShape

TRANSFORMER: TransformerFormat[Flux] = TransformerFormat(
    "a FLUX.1 transformer",
    ("double_blocks.", "single_blocks."),
    table_for,
    lambda shapes: Flux(FluxShape.of(shapes)),
)


def folder_settings(shape: FluxShape) -> dict[str, object]:
    """Return the settings by which diffusers builds a transformer of these sizes."""
    return {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": sum(shape.axes_dim),
        "axes_dims_rope": list(shape.axes_dim),
        "guidance_embeds": shape.guidance,
        "in_channels": shape.in_channels,
        "joint_attention_dim": shape.text_width,
        "num_attention_heads": shape.num_heads,
        "num_layers": shape.depth,
        "num_single_layers": shape.depth_single,
        "patch_size": 1,
        "pooled_projection_dim": shape.pooled_width,
    }


def flux_shape(path: Path, found: Shapes) -> FluxShape:
    """Return the sizes of the transformer with these tensors, in either format, without prefix.

    Raises:
        UserError: the file is no FLUX.1 transformer.
    """
    return sizes_of(path, TRANSFORMER.what, lambda: FluxShape.of(TRANSFORMER.published_shapes(found)))
