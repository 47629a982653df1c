"""The autoencoder of Stable Diffusion 3, at its real width, gives the numbers that sd-scripts gives."""

from pathlib import Path

import pytest
import torch

from sfumato.models.components import autoencoder, part_prefixes
from sfumato.models.components.tensor_views import TensorView
from sfumato.models.families.sd3.family import Sd3Family
from tests import tiny
from tests.golden.derived import arrays, assert_recorded, error, inputs, settings, weight

pytestmark = [pytest.mark.whole_model, pytest.mark.slow]  # 84 million weights are derived

NAME = "a_sd3_vae_seed"
NUMBERS = arrays(NAME)


@torch.no_grad()
def test_moments_seeded_latents_and_pixels_agree() -> None:
    shapes = {part_prefixes.VAE[0] + name: size for name, size in tiny.autoencoder(128, 16, (1, 2, 4, 4), 2)}
    prefix = settings(NAME)["key_prefix"]
    view = TensorView(Path("derived"), shapes, lambda name: weight(prefix + name, shapes[name], 0.02))
    vae = autoencoder.load_view(autoencoder.own_tensors(view), torch.float32, torch.device("cpu"))
    family, pixels = Sd3Family({}), inputs("asd3vae.img", (1, 3, 32, 48)).clamp(-1, 1)

    moments = vae.encode(pixels).latent_dist.parameters  # type: ignore[union-attr]

    assert error(moments, NUMBERS["moments"]) < 1e-5
    raw = autoencoder.encode(vae, pixels, torch.Generator().manual_seed(9))
    assert error(raw, NUMBERS["encode_seed9"]) < 1e-5
    assert error(family.latents.scaled(raw), NUMBERS["process_in"]) < 1e-5
    z = inputs("asd3vae.z", (1, 16, 4, 6))
    assert error(family.latents.raw(z), NUMBERS["process_out"]) < 1e-5
    assert_recorded(autoencoder.decode(vae, z), NUMBERS, "decode", 1e-5)
