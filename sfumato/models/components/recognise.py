"""Tell what a model file holds from the names of its tensors, so that a wrong file gets a helpful message."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FileKind:
    """One kind of file.

    Attributes:
        name: what the program calls it.
        description: what a message calls it: "it seems to be {description}".
        parts: each of these occurs in at least one tensor's name, at its start where it begins with `^`.
        width: (tensor, last dimension) that tells models of the same names apart.
    """

    name: str
    description: str
    parts: tuple[str, ...]
    width: tuple[str, int] | None = None

    def fits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Return whether a file with these tensors is of this kind."""
        if self.width and shapes.get(self.width[0], (0,))[-1:] != (self.width[1],):
            return False
        return all(_occurs(part, shapes) for part in self.parts)


_TOKENS = "text_model.embeddings.token_embedding.weight"

KINDS = (
    # Files that are made for a model come first: some carry the model's own names as well.
    FileKind("lora", "a LoRA", (".lora_down.weight",)),
    FileKind("lora", "a LoRA", (".lora_down.0.weight",)),
    FileKind("lora", "a LoRA", (".lora_A.",)),
    FileKind("oft", "an OFT network", (".oft_blocks",)),
    FileKind("loha", "a LoHa", (".hada_w1_a",)),
    FileKind("lokr", "a LoKr", (".lokr_w1",)),
    FileKind("lllite", "a ControlNet-LLLite", ("^lllite_",)),
    FileKind("embedding", "a textual-inversion embedding", ("^emb_params",)),
    FileKind("embedding", "a textual-inversion embedding", ("^clip_g", "^clip_l")),
    FileKind("scaled fp8", "a scaled fp8 file, which needs plain fp8 or bf16 instead", (".scale_weight",)),
    FileKind("controlnet", "a ControlNet", ("^controlnet_cond_embedding.",)),
    FileKind("controlnet", "a ControlNet", ("^input_hint_block.",)),
    FileKind("controlnet", "a ControlNet", ("^controlnet_blocks.",)),
    # Whole checkpoints.
    FileKind("sdxl", "an SDXL checkpoint", ("^conditioner.embedders.1.model.",)),
    FileKind("sdxl refiner", "an SDXL refiner", ("^conditioner.embedders.0.model.",)),
    FileKind("sd2", "a Stable Diffusion 2 checkpoint", ("^cond_stage_model.model.",)),
    FileKind("sd1", "a Stable Diffusion 1 checkpoint", ("^cond_stage_model.transformer.",)),
    FileKind("sd3", "an SD3 checkpoint", ("^model.diffusion_model.joint_blocks.",)),
    # Denoisers.
    FileKind(
        "flux",
        "a FLUX.1 transformer",
        ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
    ),
    FileKind(
        "flux diffusers",
        "a FLUX.1 transformer in diffusers' format",
        ("^transformer_blocks.0.attn.add_q_proj.weight", "^single_transformer_blocks.0."),
    ),
    FileKind("sd3 transformer", "an SD3 transformer", ("^joint_blocks.0.",)),
    FileKind("sdxl unet", "an SDXL UNet", ("^add_embedding.linear_1.", "^down_blocks.")),
    FileKind("sd unet", "a Stable Diffusion UNet", ("^time_embedding.linear_1.", "^down_blocks.")),
    # Parts that families share.
    FileKind("vae", "an autoencoder", ("^encoder.down.0.", "^decoder.conv_in.weight", "^decoder.up.0.")),
    FileKind(
        "vae diffusers",
        "an autoencoder in diffusers' format",
        ("^encoder.down_blocks.", "^decoder.conv_in.weight", "^decoder.up_blocks."),
    ),
    FileKind("clip l", "a CLIP-L text encoder", (f"^{_TOKENS}",), (_TOKENS, 768)),
    FileKind("clip h", "the text encoder of Stable Diffusion 2", (f"^{_TOKENS}",), (_TOKENS, 1024)),
    FileKind("clip g", "a CLIP-G text encoder", (f"^{_TOKENS}",), (_TOKENS, 1280)),
    FileKind("clip", "a CLIP text encoder", (f"^{_TOKENS}",)),
    FileKind("t5", "a T5 text encoder", ("^encoder.block.0.layer.0.SelfAttention.",)),
)
"""Every kind that is known; the first that fits counts."""

_PARTS = (
    *("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner."),
    *("model_ema.", "control_model.", "text_encoders.", "vae."),
)
"""What the tensors of whole checkpoints lie below."""

ADAPTERS = frozenset({"lora", "oft", "loha", "lokr"})
"""Names of the kinds that are adapters."""


def recognise(shapes: Mapping[str, tuple[int, ...]]) -> FileKind | None:
    """Return the kind of a file with these tensors (shape by name), or None if it is none that is known."""
    return next((kind for kind in KINDS if kind.fits(shapes)), None)


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Return what a file with these tensors seems to be, as a clause."""
    kind = recognise(shapes)
    if kind:
        return f"it seems to be {kind.description}"
    first = next(iter(shapes), None)
    return f"it is no model that is known here (first tensor: {first})" if first else "it holds no tensors"


def weight_names(names: Collection[str]) -> set[str]:
    """Return the names of a model's own tensors: everything else is for other programs, and is kept as it is.

    A whole checkpoint's own tensors lie below its parts. Of other files it is those whose names say where
    they lie; a word alone says something of the model, `v_pred` for example.
    """
    below = [name for name in names if name.startswith(_PARTS)]
    return set(below or (name for name in names if "." in name))


def _occurs(part: str, names: Iterable[str]) -> bool:
    if part.startswith("^"):
        return any(name.startswith(part[1:]) for name in names)
    return any(part in name for name in names)
