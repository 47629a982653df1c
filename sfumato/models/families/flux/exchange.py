"""What diffusers and the trainers that write its format call the layers of FLUX.1's adapters."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from sfumato.models.families.flux.keys import from_diffusers
from sfumato.models.interface.other_names import Exchanged

_CLIP = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
_T5 = (
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
)
_MLP_RATIO = 4
"""How many times wider a feed-forward layer is than the model, in all published models."""


def exchanged(names: Collection[str]) -> list[Exchanged]:
    """Return the layers of all parts, as deep as a file with these tensors goes; see `exchange.exchanged`."""
    depth = _depth(names, r"(?<!single_)transformer_blocks[._](\d+)[._]|double_blocks_(\d+)_")
    single = _depth(names, r"single_transformer_blocks[._](\d+)[._]|single_blocks_(\d+)_")
    return [*_denoiser(depth, single), *_text_encoders(names)]


def _denoiser(depth: int, single: int) -> Iterator[Exchanged]:
    for ours, source in from_diffusers(depth, single, guidance=True).items():
        layer, _, leaf = ours.rpartition(".")
        if leaf == "weight" and not source.swaps_halves:
            theirs = tuple(f"transformer.{name.removesuffix('.weight')}" for name in source.names)
            own = f"unet_{layer}".replace(".", "_")
            yield Exchanged(own, theirs, _MLP_RATIO if layer.endswith(".linear1") else 1)


def _text_encoders(names: Collection[str]) -> Iterator[Exchanged]:
    clip = _depth(names, r"text_model[._]encoder[._]layers[._](\d+)[._]")
    t5 = _depth(names, r"(?:te[23]_|text_encoder_2\.)encoder[._]block[._](\d+)[._]")
    for owner, folder, stem, count, layers in (
        ("te1", "text_encoder", "text_model.encoder.layers", clip, _CLIP),
        ("te3", "text_encoder_2", "encoder.block", t5, _T5),
    ):
        for number in range(count):
            for layer in layers:
                path = f"{stem}.{number}.{layer}"
                yield Exchanged(f"{owner}_{path}".replace(".", "_"), (f"{folder}.{path}",))


def _depth(names: Collection[str], pattern: str) -> int:
    found = (re.search(pattern, name) for name in names)
    return max((int(next(filter(None, m.groups()))) + 1 for m in found if m), default=0)
