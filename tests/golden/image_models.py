"""The tiny models of recorded image scripts, written as folders that the scripts read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.models.components.unet import unet, unet_names
from sfumato.models.interface.family import DENOISER, Family
from tests import tiny
from tests.golden.derived import inputs, rule, settings, weight
from tests.vocabularies import write_clip

FIXTURE = "k_gen_e2e"
_MODELS = settings(FIXTURE)["models"]
_LARGE = "loraxl:"
"""How the keys of SDXL's adapter begin."""


def write_models(folder: Path) -> dict[str, Path]:
    """Write the folders of both models; return them by the names that cases have for them."""
    sd, sdxl = folder / "sd", folder / "sdxl"
    model, large = _MODELS["sd"]["unet"], _MODELS["sdxl"]["unet"]
    _write_text(sd, "text_encoder", _MODELS["sd"]["te"])
    _write_unet(sd, _shape(model["block_out_channels"], (1, 1, 1, 0), model["cross_attention_dim"], 0), 8)
    _write_text(sdxl, "text_encoder", _MODELS["sd"]["te"])
    _write_text(sdxl, "text_encoder_2", _MODELS["sdxl"]["te2"])
    width = large["model_channels"]
    widths = (width, 2 * width, 4 * width)
    _write_unet(sdxl, _shape(widths, (0, 2, 10), large["context_dim"], large["adm"]), None)
    for place, tokenizers in ((sd, ["tokenizer"]), (sdxl, ["tokenizer", "tokenizer_2"])):
        _write_autoencoder(place)
        for name in tokenizers:
            write_clip(place / name)
    return {"sd": sd, "sdxl": sdxl}


def write_lora(path: Path, family: Family, key: str) -> None:
    """Write a LoRA of rank 4 and alpha 2 for the layers of a family's model that it was recorded for."""
    tensors: dict[str, Tensor] = {}
    for part in (*family.text_outputs, DENOISER):
        model = family.load(part, torch.float32, torch.device("meta"))
        for target in family.adapter_targets(part, model):
            tensors |= _lora_of(target.name, target.module, key)
    save_file(tensors, path)


def write_words(folder: Path) -> None:
    """Write the learned words of the recorded cases: one for SD, one for SDXL."""
    texts = _MODELS["sd"]["te"], _MODELS["sdxl"]["te2"]
    width, large = (text["hidden"] for text in texts)
    save_file({"emb_params": _vectors(".ti", width)}, folder / "zxqk.safetensors")
    both = {"clip_l": _vectors(".til", width), "clip_g": _vectors(".tig", large)}
    save_file(both, folder / "qwz.safetensors")


def picture(name: str, size: tuple[int, int]) -> Image.Image:
    """Return the image that the recorded cases call so."""
    values = 128 + 50 * rule(f"input:img:{settings(FIXTURE)['input_prefix']}{name}", (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.rint(values.numpy()), 0, 255).astype(np.uint8))


def _lora_of(name: str, layer: nn.Module, key: str) -> dict[str, Tensor]:
    found: Any = layer.weight
    # Where the cases were recorded, attention of text encoders was of a class that networks pass over,
    # and SDXL's residual blocks were of one that they do not.
    is_adapted = "_mlp_" in name if name.startswith("te") else _is_attention(name) or key == _LARGE
    if not is_adapted or (found.ndim == 4 and found.shape[-1] != 1):
        return {}
    side = found.shape[2:]
    shapes = {"lora_down": (4, found.shape[1], *side), "lora_up": (found.shape[0], 4, *side)}
    prefix = f"lora_{name}"
    values = {
        f"{prefix}.{way}.weight": rule(f"{key}{prefix}.{way}.weight", shape) * 0.1
        for way, shape in shapes.items()
    }
    return values | {f"{prefix}.alpha": torch.tensor(2.0)}


def _vectors(name: str, width: int) -> Tensor:
    return 0.2 * inputs(f"{settings(FIXTURE)['input_prefix'].rstrip('.')}{name}", (2, width))


def _is_attention(name: str) -> bool:
    return "_transformer_blocks_" in name or name.endswith(("_proj_in", "_proj_out"))


def _write_text(folder: Path, name: str, model: Mapping[str, Any]) -> None:
    shapes = dict(tiny.clip_l(49_408, model["hidden"], model["layers"], model["intermediate"]))
    projection = model.get("projection_dim", 0)
    if projection:
        shapes["text_projection.weight"] = (projection, model["hidden"])
    values = {key: weight(model["key_prefix"] + key, shape, model["std"]) for key, shape in shapes.items()}
    _write(folder / name, values, {"num_attention_heads": model["heads"], "hidden_act": model["act"]})


def _write_unet(folder: Path, shape: unet.UnetShape, heads: int | None) -> None:
    levels = tuple(heads or max(1, width // 64) for width in shape.widths)
    state = unet.build(shape, levels).state_dict()
    names = dict(unet_names.published_names(state)) if shape.vector else {name: name for name in state}
    std = _MODELS["sdxl" if shape.vector else "sd"]["unet"]["weight_std"]
    values = {name: weight(names[name], tensor.shape, std) for name, tensor in state.items()}
    _write(folder / "unet", values, {"attention_head_dim": list(levels)}, "diffusion_pytorch_model")


def _write_autoencoder(folder: Path) -> None:
    model = _MODELS["vae"]
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=model["block_out_channels"],
            layers_per_block=model["layers_per_block"],
            latent_channels=model["latent_channels"],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
        )
    values = {
        name: weight(model["key_prefix"] + name, tensor.shape, model["std"])
        for name, tensor in vae.state_dict().items()
    }
    _write(folder / "vae", values, {}, "diffusion_pytorch_model")


def _write(folder: Path, values: dict[str, Tensor], config: dict[str, Any], name: str = "model") -> None:
    folder.mkdir(parents=True)
    save_file(values, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def _shape(widths: Any, depths: tuple[int, ...], context: int, vector: int) -> unet.UnetShape:
    return unet.UnetShape(
        in_channels=4,
        out_channels=4,
        resnets=2,
        widths=tuple(widths),
        depths=depths,
        middle_depth=max(depths),
        context=context,
        vector=vector,
        is_linear=vector > 0,
    )
