"""Whole images against the public pipeline: noise levels, sampler, packing, guidance, decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests import tiny
from tests.pipelines import flux_weights
from tests.start_images import as_public, encode_without_chance, started


def theirs(pipeline: Pipeline, request: Request, shifted: bool) -> np.ndarray:
    """Return the image (H, W, 3) in [0, 1] that diffusers makes of the same weights, texts and noise."""
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

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
    what = "Inpaint" if request.mask else "Img2Img" if request.image else ""
    kind: Any = getattr(diffusers, f"Flux{what}Pipeline")
    public = kind(scheduler, vae, None, None, None, None, transformer)
    public.set_progress_bar_config(disable=True)
    texts = pipeline.encode(["a red cat", "a blue dog"])
    positive, negative = texts["a red cat"], texts["a blue dog"]
    with torch.inference_mode():
        made = public(
            prompt_embeds=positive["t5_out"],
            pooled_prompt_embeds=positive["l_pooled"],
            negative_prompt_embeds=negative["t5_out"],
            negative_pooled_prompt_embeds=negative["l_pooled"],
            true_cfg_scale=request.cfg_scale,
            guidance_scale=request.guidance,
            num_inference_steps=request.steps,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
            **as_public(request, public),
        )
    return made.images[0]


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("has_mask", [False, True])
def test_images_that_start_from_images_equal_those_of_the_public_pipeline(
    tmp_path: Path, has_mask: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode_without_chance(monkeypatch)
    files = tiny.flux(tmp_path)
    family = FluxFamily(files.transformer, files.clip_l, files.t5xxl, files.ae)
    pipeline = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32)
    request = Request("a red cat", "a blue dog", 48, 64, 5, 11, guidance=2.0, cfg_scale=3.0)
    request = started(request, tmp_path, has_mask=has_mask)
    expected = theirs(pipeline, request, shifted=True) * 255
    assert expected.std() > 20
    assert np.abs(np.asarray(pipeline(request)) - expected).max() < 1
