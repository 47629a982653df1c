"""ControlNet-LLLite on SDXL's UNet gives sd-scripts' outputs and gradients."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.adapters.lllite import network as networks
from sfumato.adapters.lllite.network import LLLite
from sfumato.models.components.tensor_views import TensorView
from sfumato.models.components.unet import unet, unet_names
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from tests.golden.derived import (
    arrays,
    assert_recorded,
    cases,
    error,
    inputs,
    quantities,
    rule,
    settings,
    weight,
)

pytestmark = pytest.mark.whole_model

NAME = "k_lllite"
NUMBERS, TOLD = arrays(NAME), settings(NAME)
CASES = {case["id"]: case for case in cases(NAME)}
CPU = torch.device("cpu")
MODEL = TOLD["model"]
SHAPE = unet.UnetShape(
    4, 4, 2, (32, 64, 128), (0, 2, 10), 10, MODEL["context_dim"], MODEL["adm"], is_linear=True
)
FAMILY = SdxlFamily(None)


@cache
def denoiser() -> Any:
    shapes = {name: tuple(tensor.shape) for name, tensor in unet.build(SHAPE).state_dict().items()}
    keys = unet_names.published_names(shapes)

    def get(name: str) -> Tensor:
        return weight(keys[name], shapes[name], MODEL["weight_std"])

    return unet.load(TensorView(Path("derived"), shapes, get), torch.float32, CPU)


def derived(prefix: str = "lllite:") -> LLLite:
    """Return a network with the numbers that belong to its names."""
    layers = FAMILY.controlled_layers(denoiser())
    network = networks.begin(layers, TOLD["cond_emb_dim"], TOLD["network_dim"])
    with torch.no_grad():
        for name, tensor in network.tensors().items():
            tensor.copy_(rule(prefix + name, tensor.shape) * TOLD["lllite_weight_std"])
    network.attach(networks.attachable(FAMILY.adapter_targets(DENOISER, denoiser())))
    return network


def hint(names: list[str], shape: list[int]) -> Tensor:
    """Return control images in [-1, 1]."""
    size = (8 * shape[2], 8 * shape[3], 3)
    levels = [128 + 50 * rule(f"input:img:kll.{name}", size).numpy() for name in names]
    pixels = torch.from_numpy(np.stack([np.clip(np.rint(each), 0, 255) for each in levels]))
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1


def predict(case: dict[str, Any]) -> Tensor:
    model, batch = denoiser(), case["shape"][0]
    vector = inputs(f"kll.{case['id']}.y", (batch, SHAPE.vector))
    pooled, framed = vector.split([SHAPE.vector - 6 * unet.SIZE_WIDTH, 6 * unet.SIZE_WIDTH], dim=1)
    model.add_time_proj.forward = lambda ids: framed.reshape(-1, unet.SIZE_WIDTH)
    told = {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6)}
    noisy = inputs(f"kll.{case['id']}.x", case["shape"])
    context = inputs(f"kll.{case['id']}.ctx", (batch, 77, SHAPE.context))
    timesteps = torch.tensor(case["timesteps"]).expand(batch)
    return unet.predict(model, noisy, timesteps, context, told)


@pytest.mark.parametrize("name", ["l01", "l02", "l03"])
@torch.no_grad()
def test_outputs_agree(name: str) -> None:
    case, network = CASES[name], derived()
    assert len(network.layers) == case["modules"]
    images = hint([f"{name}.{index}" for index in range(case["shape"][0])], case["shape"])
    network.strength = case["multiplier"]
    with network.showing(images):
        assert error(predict(case), NUMBERS[f"{name}/out"]) < 1e-5
    assert error(predict(case), NUMBERS[f"{name}/out_without"]) < 1e-5
    for depth in (2, 3) if "depth2_module" in case else ():
        layer: Any = network.layers[case[f"depth{depth}_module"]]
        assert error(layer.read(images), NUMBERS[f"{name}/cond_emb_depth{depth}"]) < 1e-5
    network.detach()
    assert error(predict(case), NUMBERS[f"{name}/out_without"]) < 1e-5


@torch.no_grad()
def test_two_images_serve_a_batch_of_four() -> None:
    case, network = CASES["l_double"], derived()
    with network.showing(hint(["l_double.0", "l_double.1"], case["shape"])):
        assert_recorded(predict(case), NUMBERS, "l_double/out", 1e-5)
    network.detach()


@torch.no_grad()
def test_of_two_networks_the_last_one_is_first() -> None:
    case, first, second = CASES["l_two"], derived(), derived("lllite2:")
    first.strength, second.strength = 0.8, 0.5
    images = [hint([f"l_two.{name}.0"], case["shape"]) for name in "ab"]
    with first.showing(images[0]), second.showing(images[1]):
        assert error(predict(case), NUMBERS["l_two/out"]) < 1e-5
    for network in (first, second):
        network.detach()


def test_losses_and_gradients_agree() -> None:
    case, network = CASES["l_train"], derived()
    weights = network.tensors()
    with network.showing(hint([f"l_train.{index}" for index in range(2)], case["shape"])):
        loss = ((predict(case) - inputs("kll.l_train.target", case["shape"])) ** 2).mean()
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    network.detach()
    assert len(weights) == case["trainable_tensors"]
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert norm.item() == pytest.approx(case["grad_norm"], rel=2e-4)
    for key in quantities(NUMBERS, "l_train"):
        if key.startswith("grad/"):
            assert_recorded(gradients[key.removeprefix("grad/")], NUMBERS, f"l_train/{key}", 2e-4)


def test_names_and_shapes_are_those_of_real_files() -> None:
    shape = unet.UnetShape(4, 4, 2, (320, 640, 1280), (0, 2, 10), 10, 2048, 2816, is_linear=True)
    with torch.device("meta"):
        network = networks.begin(FAMILY.controlled_layers(unet.build(shape)), 32, 64)
    rows = sorted(f"{name}|{list(tensor.shape)}" for name, tensor in network.tensors().items())
    recorded = CASES["real_keys"]
    assert len(rows) == recorded["count"]
    found = {row.partition("|")[0]: row.partition("|")[2] for row in rows}
    for group in recorded["groups"]:
        for module in group["modules"]:
            for tensor, sizes in group["tensors"].items():
                assert found[f"{module}.{tensor}"] == str(sizes)
