"""The autoencoder gives the numbers that sd-scripts gives, on files with the published names."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.models.families.flux.family import FluxFamily
from tests import tiny
from tests.golden.derived import arrays, assert_recorded, cases, inputs, settings, weight

CASES = cases("a_flux_ae_seed")
NUMBERS = arrays("a_flux_ae_seed")
PREFIX = settings("a_flux_ae_seed").get("key_prefix", "")


def test_every_case_is_checked() -> None:
    print(f"a_flux_ae_seed: {len(CASES)} cases")
    assert {case["id"] for case in CASES} == {name.split("/")[0] for name in NUMBERS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_moments_seeded_latents_and_pixels_agree(case: dict, tmp_path: Path) -> None:
    params = case["params"]
    names = tiny.autoencoder(
        params["ch"], params["z_channels"], tuple(params["ch_mult"]), params["num_res_blocks"]
    )
    save_file({k: weight(PREFIX + k, s, case["weight_std"]) for k, s in names}, tmp_path / "ae.safetensors")
    family = FluxFamily(None, ae=tmp_path / "ae.safetensors")
    assert family.latents.channels == params["z_channels"]
    vae = family.load("vae", torch.float32, torch.device("cpu"))
    size = [int(side) for side in re.findall(r"\d+", case["image"].rpartition("(")[2])]
    pixels = inputs(f"aflux.{case['id']}.img", size).clamp(-1, 1)
    with torch.no_grad():
        assert_recorded(vae.encode(pixels).latent_dist.parameters, NUMBERS, f"{case['id']}/moments", 1e-5)
        generator = torch.Generator().manual_seed(case["encode_seed"])
        latents = family.encode_image(vae, pixels, generator)
        assert list(latents.shape) == case["z_shape"]
        assert_recorded(latents, NUMBERS, f"{case['id']}/encode_seeded", 1e-5)
        z = inputs(f"aflux.{case['id']}.z", case["z_shape"])
        assert_recorded(family.decode_image(vae, z), NUMBERS, f"{case['id']}/decode", 1e-5)
