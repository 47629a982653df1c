"""Stable Diffusion's autoencoder, at its real width, gives the numbers that sd-scripts gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sfumato.models import autoencoder
from sfumato.models.views import View
from tests import tiny
from tests.golden.derived import HERE, cases, error, inputs, settings, weight

NUMBERS = load_file(HERE / "a_sd_vae.safetensors")
(CASE,) = cases("a_sd_vae")


@torch.no_grad()
def test_moments_seeded_latents_and_pixels_agree() -> None:
    shapes = dict(tiny.autoencoder(128, 4, (1, 2, 4, 4), 2)) | {
        "quant_conv.weight": (8, 8, 1, 1),
        "quant_conv.bias": (8,),
        "post_quant_conv.weight": (4, 4, 1, 1),
        "post_quant_conv.bias": (4,),
    }
    whole = {autoencoder.PREFIX + name: shape for name, shape in shapes.items()}
    assert len(whole) == settings("a_sd_vae")["n_tensors"]
    view = View(Path("derived"), whole, lambda name: weight(name, whole[name], 0.02))
    vae = autoencoder.load_view(autoencoder.own_tensors(view), torch.float32, torch.device("cpu"))
    pixels = inputs("sdvae.img", tuple(CASE["image_shape"])).clamp(-1, 1)

    moments = vae.encode(pixels).latent_dist  # type: ignore[union-attr]

    assert error(moments.mean, NUMBERS["mean"]) < 1e-5
    assert error(moments.logvar, NUMBERS["logvar"]) < 1e-5
    assert torch.equal(autoencoder.encode(vae, pixels, None), moments.mean)
    rng = torch.Generator().manual_seed(21)
    assert error(autoencoder.encode(vae, pixels, rng), NUMBERS["sample_seed21"]) < 1e-5
    decoded = autoencoder.decode(vae, inputs("sdvae.z", tuple(CASE["z_shape"]))).flatten()
    assert error(decoded[:1024], NUMBERS["decode/first"]) < 1e-5
    assert error(decoded[:: decoded.numel() // 1024][:1024], NUMBERS["decode/strided"]) < 1e-5
    assert decoded.double().norm().item() == pytest.approx(NUMBERS["decode/stats"][3].item(), rel=1e-5)
