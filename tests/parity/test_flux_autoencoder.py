"""A file in the published naming is the autoencoder that diffusers saved."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from sfumato.models.components import autoencoder
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.interface.publishing import Publishing, tensors_of

CPU = torch.device("cpu")


def test_folder_of_diffusers_and_our_published_file_decode_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 32, 64),
        layers_per_block=2,
        latent_channels=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    ).eval()
    theirs.save_pretrained(tmp_path / "vae")
    family = FluxFamily(None, ae=tmp_path / "vae")
    assert (family.latents.channels, family.latents.downscale) == (4, 4)
    ours = family.load("vae", torch.float32, CPU)
    family.write({"vae": tensors_of(ours)}, tmp_path / "ae.safetensors", Publishing())
    again = autoencoder.load(tmp_path / "ae.safetensors", torch.float32, CPU)
    pixels = torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        mean = theirs.encode(pixels).latent_dist.mode()
        expected = theirs.decode(mean).sample
        for vae in (ours, again):
            latents = family.encode_image(vae, pixels, None)
            torch.testing.assert_close(latents, (mean - 0.1159) * 0.3611, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(family.decode_image(vae, latents), expected, rtol=1e-5, atol=1e-5)
