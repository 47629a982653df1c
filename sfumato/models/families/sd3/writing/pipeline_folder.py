"""A folder that diffusers opens as a pipeline of Stable Diffusion 3."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.components import text_encoders
from sfumato.models.components.folder_settings import network_settings, text_settings, write_settings
from sfumato.models.components.pipeline_index import INDEX, copied
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.families.sd3 import schedule, transformer
from sfumato.models.families.sd3.files import LATENT_SCALE, LATENT_SHIFT, PARTS
from sfumato.models.families.sd3.keys import to_diffusers
from sfumato.models.families.sd3.network import MMDiT
from sfumato.models.families.sd3.text import CLIP_G, CLIP_L, OUTPUTS, T5XXL
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import PartTensors, Publishing, TrainedParts
from sfumato.models.interface.tokenizers import Tokenizers

_TOKENIZERS = {
    CLIP_L: ("tokenizer", "CLIPTokenizer"),
    CLIP_G: ("tokenizer_2", "CLIPTokenizer"),
    T5XXL: ("tokenizer_3", "T5TokenizerFast"),
}
"""Of each text encoder, the folder of its tokenizer and the class that reads it."""
_CLASSES = {
    DENOISER: ("diffusers", "SD3Transformer2DModel"),
    VAE: ("diffusers", "AutoencoderKL"),
    CLIP_L: ("transformers", "CLIPTextModelWithProjection"),
    CLIP_G: ("transformers", "CLIPTextModelWithProjection"),
    T5XXL: ("transformers", "T5EncoderModel"),
}
_SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": schedule.SHIFT,
}


def weight_files(parts: TrainedParts, folder: Path, how: Publishing) -> list[WeightFile]:
    """Return the file of each part's weights; `parts` by the names in their states."""
    return [
        WeightFile(
            folder / PARTS[part].folder / _weights(part), _named(part, own), {"format": "pt"}, how.dtype
        )
        for part, own in parts.items()
    ]


def write_surroundings(
    models: Mapping[str, nn.Module],
    folder: Path,
    tokenizers: Tokenizers[Tokenizer],
    reference: Path | None,
) -> None:
    """Write the parts' settings, scheduler, tokenizers and the index of all.

    Args:
        models: the parts, without numbers.
        tokenizers: of the text encoders, where they are not copied.
        reference: as `Publishing` has it.
    """
    places = {part: _TOKENIZERS[part][0] for part in OUTPUTS if part in models}
    taken = copied(reference, folder, ("scheduler", *places.values())) if reference is not None else {}
    for part, model in models.items():
        write_settings(folder / PARTS[part].folder / "config.json", _settings(part, model))
    for part, place in places.items():
        if place not in taken:
            tokenizers[part].vocabulary.save_pretrained(folder / place)
    if "scheduler" not in taken:
        write_settings(folder / "scheduler" / "scheduler_config.json", _SCHEDULER)
    write_settings(folder / INDEX, _index(models) | taken)


def _index(models: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return which class each folder is for; of what is not there, that it is nothing."""
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline"}
    index["scheduler"] = ["diffusers", _SCHEDULER["_class_name"]]
    for part, spec in PARTS.items():
        index[spec.folder] = _CLASSES[part] if part in models else [None, None]
    for part, (place, name) in _TOKENIZERS.items():
        index[place] = ["transformers", name] if part in models else [None, None]
    return index


def _weights(part: str) -> str:
    return "model.safetensors" if part in OUTPUTS else "diffusion_pytorch_model.safetensors"


def _named(part: str, own: PartTensors) -> Mapping[str, LazyTensor]:
    if part == DENOISER:
        return to_diffusers(own)
    return text_encoders.stored_once(own) if part in OUTPUTS else own


def _settings(part: str, model: nn.Module) -> dict[str, Any]:
    if part == DENOISER:
        return transformer.folder_settings(cast(MMDiT, model).shape)
    if part == VAE:
        return network_settings(model, scaling_factor=LATENT_SCALE, shift_factor=LATENT_SHIFT)
    return text_settings(model)
