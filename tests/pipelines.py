"""diffusers' own pipelines made of tiny single files by diffusers' own conversion: what we compare with."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.models.families.flux.keys import to_diffusers

Weights = dict[str, Tensor]


def pipeline_from(file: Path, kind: str, tokenizers: Path, prediction: str = "epsilon") -> Any:
    """Return a StableDiffusionPipeline or StableDiffusionXLPipeline in float32.

    Args:
        file: a single file, safetensors or pickled.
        kind: `sd1`, `sd2` or `sdxl`.
        tokenizers: laid out like `--tokenizer_cache_dir`.
        prediction: `epsilon` or `v_prediction`.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    weights = _read(file)
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction,
    )
    parts: dict[str, Any] = {"unet": unet(weights, kind), "vae": _vae(weights, kind), "scheduler": scheduler}
    if kind == "sdxl":
        first, second = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
        return StableDiffusionXLPipeline(
            **parts,
            text_encoder=_clip(weights, first),
            text_encoder_2=_openclip(weights, second, has_projection=True),
            tokenizer=_tokenizer(tokenizers),
            tokenizer_2=_tokenizer(tokenizers, pad_token="!"),
            add_watermarker=False,
        )
    is_v2 = kind == "sd2"
    text = (
        _openclip(weights, "cond_stage_model.model.", has_projection=False)
        if is_v2
        else _clip(weights, "cond_stage_model.transformer.")
    )
    return StableDiffusionPipeline(
        **parts,
        text_encoder=text,
        tokenizer=_tokenizer(tokenizers, **({"pad_token": "!"} if is_v2 else {})),
        safety_checker=None,
        feature_extractor=None,  # type: ignore[arg-type]
        requires_safety_checker=False,
    )


def flux_weights(weights: Mapping[str, Tensor]) -> Weights:
    """Return a published FLUX transformer's weights under diffusers' names."""
    lazily = to_diffusers({name: LazyTensor.of(tensor) for name, tensor in weights.items()})
    return {name: tensor.load() for name, tensor in lazily.items()}


def unet(weights: Weights, kind: str) -> Any:
    """Return diffusers' UNet with the weights of a single file."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    prefix = "model.diffusion_model."
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    widths, depths, context = _unet_sizes(own)
    is_sd1 = kind == "sd1"
    config: dict[str, Any] = {
        "in_channels": own["input_blocks.0.0.weight"].shape[1],
        "out_channels": own["out.2.weight"].shape[0],
        "block_out_channels": widths,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in depths[::-1]],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "layers_per_block": 2,
        "cross_attention_dim": context,
        "attention_head_dim": 8 if is_sd1 else [max(1, width // 64) for width in widths],
        "use_linear_projection": not is_sd1,
        "norm_num_groups": math.gcd(32, *widths),
    }
    if kind == "sdxl":
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": own["label_emb.0.0.weight"].shape[1],
        }
    model = UNet2DConditionModel(**config)
    converting = {
        **config,
        "class_embed_type": None,
        "addition_embed_type": config.get("addition_embed_type"),
    }
    model.load_state_dict(convert_ldm_unet_checkpoint(dict(weights), converting))
    return model.eval()


def _unet_sizes(own: Weights) -> tuple[list[int], list[int], int]:
    """Return the widths, the transformer depths and the context width of a UNet with two resnets a level."""
    widths, depths = [], []
    number = 1
    while f"input_blocks.{number}.0.in_layers.2.weight" in own:
        widths.append(own[f"input_blocks.{number}.0.in_layers.2.weight"].shape[0])
        depths.append(_count(own, rf"input_blocks\.{number}\.1\.transformer_blocks\.(\d+)\."))
        number += 3
    key = next(name for name in own if name.endswith("attn2.to_k.weight"))
    return widths, depths, own[key].shape[1]


def _vae(weights: Weights, kind: str) -> Any:
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = _count(weights, r"first_stage_model\.encoder\.down\.(\d+)\.")
    widths = [
        weights[f"first_stage_model.encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)
    ]
    config: dict[str, Any] = {
        "latent_channels": weights["first_stage_model.post_quant_conv.weight"].shape[0],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(weights, r"first_stage_model\.encoder\.down\.0\.block\.(\d+)\."),
        "norm_num_groups": math.gcd(32, *widths),
        "scaling_factor": 0.13025 if kind == "sdxl" else 0.18215,
    }
    model = AutoencoderKL(**config)
    model.load_state_dict(convert_ldm_vae_checkpoint(dict(weights), config))
    return model.eval()


def _clip(weights: Weights, prefix: str) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    bare = prefix + "text_model."
    own = {name.removeprefix(bare): value for name, value in weights.items() if name.startswith(bare)}
    vocabulary, width = own["embeddings.token_embedding.weight"].shape
    layers = _count(own, r"encoder\.layers\.(\d+)\.")
    model = CLIPTextModel(CLIPTextConfig(**_clip_sizes(vocabulary, width, layers), hidden_act="quick_gelu"))
    own.pop("embeddings.position_ids", None)
    model.load_state_dict(own, strict=True)
    return model.eval()


def _openclip(weights: Weights, prefix: str, *, has_projection: bool) -> Any:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    vocabulary, width = weights[prefix + "token_embedding.weight"].shape
    layers = _count(weights, re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")
    sizes = _clip_sizes(vocabulary, width, layers if has_projection else layers - 1)
    sizes["projection_dim"] = weights[prefix + "text_projection"].shape[1]
    config = CLIPTextConfig(**sizes, hidden_act="gelu")
    model = CLIPTextModelWithProjection(config) if has_projection else CLIPTextModel(config)
    if not has_projection:  # diffusers drops the last layer of this model by its number, 23
        dropped = f"{prefix}transformer.resblocks.{layers - 1}."
        weights = {name: value for name, value in weights.items() if not name.startswith(dropped)}
    converted = convert_open_clip_checkpoint(model, dict(weights), prefix=prefix)
    own = {name if has_projection else name.removeprefix("text_model."): v for name, v in converted.items()}
    own = {name: value for name, value in own.items() if "position_ids" not in name}
    model.load_state_dict(
        own if has_projection else {k: v for k, v in own.items() if k in model.state_dict()}
    )
    return model.eval()


def _clip_sizes(vocabulary: int, width: int, layers: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": max(1, width // 64),
        "projection_dim": width,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }


def _tokenizer(folder: Path, **options: str) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "openai_clip-vit-large-patch14", **options)


def _read(file: Path) -> Weights:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return {name: value.float() for name, value in load_file(file).items()}
    content = torch.load(file, weights_only=True)
    return {name: value.float() for name, value in content.get("state_dict", content).items()}


def _count(names: Iterable[str], pattern: str) -> int:
    return max((int(match[1]) + 1 for name in names if (match := re.match(pattern, name))), default=0)
