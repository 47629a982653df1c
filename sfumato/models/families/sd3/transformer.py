"""Transformers of Stable Diffusion 3 and 3.5 in files."""

from __future__ import annotations

from pathlib import Path

from sfumato.models.components.dit.transformer_file import TransformerFormat
from sfumato.models.components.loading import sizes_of
from sfumato.models.components.tensor_views import Shapes
from sfumato.models.families.sd3.keys import table_for
from sfumato.models.families.sd3.network import MMDiT, MMDiTShape
from sfumato.models.families.sd3.positions import PATCH

TRANSFORMER: TransformerFormat[MMDiT] = TransformerFormat(
    "a transformer of Stable Diffusion 3",
    ("joint_blocks.",),
    table_for,
    lambda shapes: MMDiT(MMDiTShape.of(shapes)),
    undotted=("pos_embed",),
)


def folder_settings(shape: MMDiTShape) -> dict[str, object]:
    """Return the settings by which diffusers builds a transformer of these sizes."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": shape.hidden_size // shape.num_heads,
        "caption_projection_dim": shape.hidden_size,
        "dual_attention_layers": sorted(shape.dual_blocks),
        "in_channels": shape.channels,
        "joint_attention_dim": shape.text_width,
        "num_attention_heads": shape.num_heads,
        "num_layers": shape.depth,
        "out_channels": shape.channels,
        "patch_size": PATCH,
        "pooled_projection_dim": shape.pooled_width,
        "pos_embed_max_size": shape.side,
        "qk_norm": "rms_norm" if shape.has_qk_norm else None,
        "sample_size": 128,
    }


def mmdit_shape(path: Path, found: Shapes) -> MMDiTShape:
    """Return the sizes of the transformer with these tensors, in either format, without prefix.

    Raises:
        UserError: the file is no such transformer.
    """
    return sizes_of(path, TRANSFORMER.what, lambda: MMDiTShape.of(TRANSFORMER.published_shapes(found)))
