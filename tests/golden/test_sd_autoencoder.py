"""Stable Diffusion's autoencoder, at its real width, gives the numbers that sd-scripts gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.models.components import autoencoder, part_prefixes
from sfumato.models.components.tensor_views import TensorView
from tests import tiny
from tests.golden.derived import arrays, assert_recorded, cases, error, inputs, settings, weight

pytestmark = pytest.mark.whole_model

NUMBERS = arrays("a_sd_vae")
PREFIX = settings("a_sd_vae").get("key_prefix", "")
SAMPLES = [name for name in NUMBERS if name.startswith("sample_seed")]


@torch.no_grad()
@pytest.mark.parametrize("case", cases("a_sd_vae"), ids=lambda case: case["id"])
def test_moments_seeded_latents_and_pixels_agree(case: dict[str, Any]) -> None:
    shapes = dict(tiny.autoencoder(128, 4, (1, 2, 4, 4), 2)) | {
        "quant_conv.weight": (8, 8, 1, 1),
        "quant_conv.bias": (8,),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "post_quant_conv.bias": (4,),
    }
    whole = {part_prefixes.VAE[0] + name: shape for name, shape in shapes.items()}
    assert len(whole) == settings("a_sd_vae")["n_tensors"]
    view = TensorView(Path("derived"), whole, lambda name: weight(PREFIX + name, whole[name], 0.02))
    vae = autoencoder.load_view(autoencoder.own_tensors(view), torch.float32, torch.device("cpu"))
    pixels = inputs("sdvae.img", tuple(case["image_shape"])).clamp(-1, 1)

    moments = vae.encode(pixels).latent_dist  # type: ignore[union-attr]

    assert error(moments.mean, NUMBERS["mean"]) < 1e-5
    assert error(moments.logvar, NUMBERS["logvar"]) < 1e-5
    assert torch.equal(autoencoder.encode(vae, pixels, None), moments.mean)
    assert SAMPLES
    for name in SAMPLES:
        rng = torch.Generator().manual_seed(int(name.removeprefix("sample_seed")))
        assert error(autoencoder.encode(vae, pixels, rng), NUMBERS[name]) < 1e-5
    decoded = autoencoder.decode(vae, inputs("sdvae.z", case["z_shape"]))
    assert_recorded(decoded, NUMBERS, "decode", 1e-5)
