"""The latent upscaler gives what the recorded one gives in eval mode."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from sfumato.sampling.hires.latent_network import LatentNetwork
from sfumato.sampling.hires.latent_upscaler import create_upscaler
from tests.golden.derived import arrays, assert_recorded, cases, inputs, rule, weight

pytestmark = pytest.mark.whole_model

NUMBERS = arrays("k_tagger_seed")
CASES = {case["id"]: case for case in cases("k_tagger_seed") if case["id"].startswith("up")}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def network() -> LatentNetwork:
    network = LatentNetwork().requires_grad_(False).eval()
    network.load_state_dict({name: _value(name, like) for name, like in network.state_dict().items()})
    return network


def _value(name: str, like: Tensor) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return like
    if name.endswith("running_mean"):
        return 0.1 * rule(name, like.shape)
    if name.endswith("running_var"):
        return 1 + 0.3 * torch.tanh(rule(name, like.shape))
    return weight(name, like.shape, 0.05 if name.startswith("conv_final") else 0.03)


def test_the_network_has_the_published_tensors(network: LatentNetwork) -> None:
    assert len(network.state_dict()) == CASES["up1"]["keys"]
    lines = sorted(f"{name}|{list(tensor.shape)}" for name, tensor in network.state_dict().items())
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == CASES["up1"]["keys_hash"]


@pytest.mark.parametrize("name", ["up1", "up2"])
def test_the_network_sharpens_as_recorded(name: str, network: LatentNetwork) -> None:
    found = network(inputs(f"ktg.{name}.x", CASES[name]["shape"]))
    assert_recorded(found, NUMBERS, f"{name}/out", TOLERANCE)


class Averages(nn.Module):
    """An autoencoder whose latents are colors, and half of the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(1))

    def encode(self, pixels: Tensor) -> SimpleNamespace:
        colors = functional.avg_pool2d(pixels, 8)
        mean = torch.cat([colors, colors[:, :1] / 2], dim=1)
        return SimpleNamespace(latent_dist=SimpleNamespace(parameters=torch.cat([mean, mean], dim=1)))


def test_images_are_enlarged_as_recorded(network: LatentNetwork, tmp_path: Path) -> None:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    upscaler = create_upscaler(weights=str(tmp_path / "weights.safetensors"))
    pixels = [128 + 50 * rule(f"input:img:ktg.up_img.{number}", (24, 32, 3)).numpy() for number in range(2)]
    pictures = [Image.fromarray(np.clip(np.rint(each), 0, 255).astype(np.uint8)) for each in pixels]
    found = upscaler.upscale(Averages(), pictures, None, torch.float32, *CASES["up_img"]["size"], 4, 1)
    assert_recorded(found, NUMBERS, "up_img/out", TOLERANCE)
