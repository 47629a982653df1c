"""Tell what a model file holds from the names of its tensors, so that a wrong file gets a helpful message."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from sfumato.models.components.controlnet.control_kinds import CONTROL_KINDS
from sfumato.models.components.part_prefixes import WHOLE
from sfumato.models.interface.catalogue import guest_facts, our_facts
from sfumato.models.interface.file_kinds import FileKind

_BARE_TOKENS = "embeddings.token_embedding.weight"
_TOKENS = f"text_model.{_BARE_TOKENS}"

_OTHERS = (
    # Files that are made for a model come first: some carry the model's own names as well.
    FileKind("lora", "a LoRA", (".lora_down.weight",)),
    FileKind("lora", "a LoRA", (".lora_down.0.weight",)),
    FileKind("lora", "a LoRA", (".lora_A.",)),
    FileKind("oft", "an OFT network", (".oft_blocks",)),
    FileKind("loha", "a LoHa", (".hada_w1_a",)),
    FileKind("lokr", "a LoKr", (".lokr_w1",)),
    FileKind("embedding", "a textual-inversion embedding", ("^emb_params",)),
    FileKind("embedding", "a textual-inversion embedding", ("^clip_g", "^clip_l")),
    *CONTROL_KINDS,
)
"""What is no base model; looked at first."""

_SHARED = (
    FileKind("vae", "an autoencoder", ("^encoder.down.0.", "^decoder.conv_in.weight", "^decoder.up.0.")),
    FileKind(
        "vae diffusers",
        "an autoencoder in diffusers' format",
        ("^encoder.down_blocks.", "^decoder.conv_in.weight", "^decoder.up_blocks."),
    ),
    FileKind("clip l", "a CLIP-L text encoder", (f"^{_TOKENS}",), (_TOKENS, 768)),
    FileKind("clip", "a CLIP text encoder", (f"^{_TOKENS}",)),
    FileKind("clip l", "a CLIP-L text encoder", (f"^{_BARE_TOKENS}",), (_BARE_TOKENS, 768)),
    FileKind("clip", "a CLIP text encoder", (f"^{_BARE_TOKENS}",)),
    FileKind("t5", "a T5 text encoder", ("^encoder.block.0.layer.0.SelfAttention.",)),
    FileKind("unet alone", "a UNet without its text encoder", ("diffusion_model.input_blocks.0.",)),
)
"""Parts that several families have; looked at last."""


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> FileKind | None:
    """Return the kind of a file with these tensors (shape by name), or None if it is none that is known.

    The files of families come with their facts; those of other packages are asked for what is none of ours.
    """
    return next((kind for kind in _kinds() if kind.fits(shapes)), None)


def _kinds() -> Iterator[FileKind]:
    yield from _OTHERS
    for facts in our_facts():
        yield from facts.kinds
    yield from _SHARED
    for facts in guest_facts():
        yield from facts.kinds


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return what a file with these tensors seems to be, as a clause."""
    kind = recognise(shapes)
    if kind:
        family = next((facts.name for facts in our_facts() if kind.name in facts.bases), "")
        where = f", a base for `sfumato train {family}`" if family else ""
        return f"it seems to be {kind.description}{where}"
    first = next(iter(shapes), None)
    return f"it is no model that is known here (first tensor: {first})" if first else "it holds no tensors"


def weight_names(names: Collection[str]) -> set[str]:
    """Return the names of a model's own tensors: everything else is for other programs, and is kept as it is.

    A whole checkpoint's own tensors lie below its parts. Of other files it is those whose names say where
    they lie; a word alone says something of the model, `v_pred` for example.
    """
    below = [name for name in names if name.startswith(WHOLE)]
    return set(below or (name for name in names if "." in name))
