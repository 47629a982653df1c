"""The small FLUX.1 transformer of recorded adapter cases."""

from sfumato.models.flux.network import FluxShape

SHAPE = FluxShape(
    hidden_size=96,
    num_heads=4,
    depth=2,
    depth_single=3,
    in_channels=64,
    text_width=48,
    pooled_width=32,
    mlp_hidden=384,
    axes_dim=(4, 10, 10),
    guidance=True,
)
