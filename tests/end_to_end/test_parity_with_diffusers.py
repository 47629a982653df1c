"""Whole images against the public pipeline: noise levels, sampler, packing, guidance, decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.families.flux.packing import pack
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests import tiny
from tests.pipelines import flux_weights


def theirs(pipeline: Pipeline, request: Request, shifted: bool) -> np.ndarray:
    """Return the image (H, W, 3) in [0, 1] that diffusers makes of the same weights, texts and noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    own: Any = pipeline.parts[DENOISER]
    head_dim = own.double_blocks[0].img_attn.norm.query_norm.scale.numel()
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=len(own.double_blocks),
        num_single_layers=len(own.single_blocks),
        attention_head_dim=head_dim,
        num_attention_heads=64 // head_dim,
        joint_attention_dim=tiny.T5_WIDTH,
        pooled_projection_dim=tiny.CLIP_WIDTH,
        guidance_embeds=shifted,
        axes_dims_rope=(4, 14, 14),
    )
    transformer.load_state_dict(flux_weights(own.state_dict()))
    vae: Any = pipeline.parts[VAE]
    vae.register_to_config(scaling_factor=0.3611, shift_factor=0.1159)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=shifted)
    public = FluxPipeline(scheduler, vae, None, None, None, None, transformer)  # type: ignore[arg-type]
    public.set_progress_bar_config(disable=True)
    texts = pipeline.encode(["a red cat", "a blue dog"])
    positive, negative = texts["a red cat"], texts["a blue dog"]
    noise = torch.randn(
        (1, 16, request.height // 8, request.width // 8),
        generator=torch.Generator().manual_seed(request.seed),
    )
    with torch.inference_mode():
        made = public(
            prompt_embeds=positive["t5_out"],
            pooled_prompt_embeds=positive["l_pooled"],
            negative_prompt_embeds=negative["t5_out"],
            negative_pooled_prompt_embeds=negative["l_pooled"],
            true_cfg_scale=request.cfg_scale,
            guidance_scale=request.guidance,
            num_inference_steps=request.steps,
            width=request.width,
            height=request.height,
            latents=pack(noise),
            output_type="np",
        )
    return made.images[0]  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["dev", "schnell"])
@pytest.mark.parametrize("cfg_scale", [1.0, 3.0])
def test_images_equal_those_of_the_public_pipeline(tmp_path: Path, variant: str, cfg_scale: float) -> None:
    files = tiny.flux(tmp_path, schnell=variant == "schnell")
    family = FluxFamily(files.transformer, files.clip_l, files.t5xxl, files.ae)
    pipeline = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32)
    request = Request("a red cat", "a blue dog", 48, 64, 3, 11, guidance=2.0, cfg_scale=cfg_scale)
    expected = theirs(pipeline, request, shifted=variant == "dev") * 255
    assert expected.std() > 20
    assert np.abs(np.asarray(pipeline(request)) - expected).max() < 1
