"""The autoencoder gives the numbers that sd-scripts gives, on files with the published names."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.models.flux.family import FluxFamily
from tests import tiny

HERE = Path(__file__).parent
CASES = json.loads((HERE / "a_flux_ae_seed.json").read_text())["cases"]
NUMBERS = load_file(HERE / "a_flux_ae_seed.safetensors")


def rule(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "little")
    generator = np.random.Generator(np.random.PCG64(seed))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def weight(name: str, shape: tuple[int, ...], std: float) -> torch.Tensor:
    value = rule(name, shape) * np.float32(std)
    return 1 + value if len(shape) == 1 and name.endswith(("weight", "scale")) else value


def assert_close(actual: torch.Tensor, name: str) -> None:
    first, strided = NUMBERS[f"{name}/first"], NUMBERS[f"{name}/strided"]
    flat, count = actual.flatten(), len(first)
    for got, expected in ((flat[:count], first), (flat[:: max(1, flat.numel() // count)][:count], strided)):
        assert ((got - expected).abs().max() / expected.abs().max()).item() < 1e-5, name


def test_every_case_is_checked() -> None:
    print(f"a_flux_ae_seed: {len(CASES)} cases")
    assert len(CASES) == 3
    assert {case["id"] for case in CASES} == {name.split("/")[0] for name in NUMBERS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_moments_seeded_latents_and_pixels_agree(case: dict, tmp_path: Path) -> None:
    params = case["params"]
    names = tiny.autoencoder(
        params["ch"], params["z_channels"], tuple(params["ch_mult"]), params["num_res_blocks"]
    )
    save_file({k: weight(k, s, case["weight_std"]) for k, s in names}, tmp_path / "ae.safetensors")
    family = FluxFamily(None, ae=tmp_path / "ae.safetensors")
    assert family.latents.channels == params["z_channels"]
    vae = family.load("vae", torch.float32, torch.device("cpu"))
    pixels = rule(f"input:aflux.{case['id']}.img", (2, 3, 32, 48)).clamp(-1, 1)
    with torch.no_grad():
        assert_close(vae.encode(pixels).latent_dist.parameters, f"{case['id']}/moments")
        generator = torch.Generator().manual_seed(case["encode_seed"])
        latents = family.encode_image(vae, pixels, generator)
        assert list(latents.shape) == case["z_shape"]
        assert_close(latents, f"{case['id']}/encode_seeded")
        z = rule(f"input:aflux.{case['id']}.z", tuple(case["z_shape"]))
        assert_close(family.decode_image(vae, z), f"{case['id']}/decode")
