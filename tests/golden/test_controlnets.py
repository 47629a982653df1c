"""ControlNets of Stable Diffusion 1 and XL give sd-scripts' residuals, outputs, losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sfumato.diffusion import losses, objectives, schedules
from sfumato.models.components.controlnet import controlnet, controlnet_names
from sfumato.models.components.tensor_views import TensorView
from sfumato.models.components.unet import unet, unet_names
from sfumato.training.trainables.noising import SnrWeights
from tests.golden.derived import (
    arrays,
    assert_recorded,
    cases,
    inputs,
    quantities,
    rule,
    settings,
    weight,
)
from tests.golden.unet_models import predict_in_place

pytestmark = pytest.mark.whole_model

NAME = "k_controlnet"
NUMBERS, TOLD = arrays(NAME), settings(NAME)
CASES = {case["id"]: case for case in cases(NAME)}
OUTPUTS = [name for name, case in CASES.items() if "model" in case and "loss" not in case]
LOSSES = [name for name, case in CASES.items() if "loss" in case and case.get("judge") != "right"]
CPU = torch.device("cpu")
SHAPES = {
    "sd": unet.UnetShape(4, 4, 2, (32, 64, 128, 128), (1, 1, 1, 0), 1, 48, 0, is_linear=False),
    "sdxl": unet.UnetShape(4, 4, 2, (32, 64, 128), (0, 2, 10), 10, 96, 1600, is_linear=True),
}


@cache
def models(kind: str) -> tuple[Any, Any]:
    """Return the U-Net and the ControlNet with the numbers that belong to their names."""
    return derived(kind, "", unet.build, unet.load, unet_names.published_names), derived(
        kind, "cn:", controlnet.build, controlnet.load, lambda names: published(kind, names)
    )


def derived(kind: str, prefix: str, build: Callable[..., Any], load: Callable[..., Any], names: Any) -> Any:
    shapes = {name: tuple(tensor.shape) for name, tensor in build(SHAPES[kind]).state_dict().items()}
    keys = names(shapes) if kind == "sdxl" else {name: name for name in shapes}

    def get(name: str) -> Tensor:
        return weight(prefix + keys[name], shapes[name], TOLD[kind]["weight_std"])

    return load(TensorView(Path("derived"), shapes, get), torch.float32, CPU)


def published(kind: str, names: Any) -> dict[str, str]:
    """Return the names that the recorded network has in memory: what was added keeps diffusers'."""
    found = unet_names.published_names(names)
    return {name: name if name.startswith(controlnet_names.ADDED) else found[name] for name in names}


def hint(name: str, shape: list[int]) -> Tensor:
    """Return control images in [0, 255] for latents of that shape."""
    batch, _, height, width = shape
    size = (8 * height, 8 * width, 3)
    noise = [rule(f"input:img:kcn.{name}.{index}", size).numpy() for index in range(batch)]
    return torch.from_numpy(np.stack([np.clip(np.rint(128 + 50 * each), 0, 255) for each in noise])).permute(
        0, 3, 1, 2
    )


def shown(case: dict[str, Any]) -> Tensor:
    """Return control images in [-1, 1], so that the network reads what the recorded one did."""
    levels = hint(case["id"], case["shape"])
    return levels / 127.5 - 1 if case["hint_range"] == "01" else 2 * (levels / 127.5 - 1) - 1


def told(case: dict[str, Any], networks: tuple[Any, Any]) -> dict[str, Tensor] | None:
    if case["model"] != "sdxl":
        return None
    batch, width = case["shape"][0], SHAPES["sdxl"].vector
    vector = inputs(f"kcn.{case['id']}.y", (batch, width))
    pooled, framed = vector.split([width - 6 * unet.SIZE_WIDTH, 6 * unet.SIZE_WIDTH], dim=1)
    for network in networks:  # the recorded models take the embedded framing as it is
        network.add_time_proj.forward = lambda ids: framed.reshape(-1, unet.SIZE_WIDTH)
    return {"text_embeds": pooled, "time_ids": torch.zeros(batch, 6)}


def given(case: dict[str, Any], noisy: Tensor) -> tuple[Any, ...]:
    """Return what both networks are told: noisy latents, timesteps, text, and what SDXL is told besides."""
    context = inputs(
        f"kcn.{case['id']}.ctx",
        (len(noisy), case.get("ctx_len", 77), SHAPES[case["model"]].context),
    )
    return noisy, torch.tensor(case["timesteps"]), context, told(case, models(case["model"]))


def controlled(
    case: dict[str, Any], denoiser: Any, what: tuple[Any, ...], added: dict[str, Tensor]
) -> Tensor:
    """Return the U-Net's output as the recorded one has it."""
    if case["model"] == "sdxl":
        return unet.predict(denoiser, *what, added)
    return predict_in_place(unet.predict, denoiser, *what, added)


@pytest.mark.parametrize("name", OUTPUTS)
@torch.no_grad()
def test_residuals_and_outputs_agree(name: str) -> None:
    case = CASES[name]
    denoiser, net = models(case["model"])
    what = given(case, inputs(f"kcn.{name}.x", case["shape"]))
    strength = case.get("multiplier") or 1
    added = {key: strength * it for key, it in controlnet.predict(net, shown(case), *what).items()}
    *down, middle = added.values()
    for number, tensor in enumerate(down):
        assert_recorded(tensor, NUMBERS, f"{name}/down{number}", 1e-5)
    assert_recorded(middle, NUMBERS, f"{name}/mid", 1e-5)
    assert_recorded(controlled(case, denoiser, what, added), NUMBERS, f"{name}/out", 1e-5)
    assert_recorded(unet.predict(denoiser, *what), NUMBERS, f"{name}/out_without", 1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_agree(name: str) -> None:
    case = CASES[name]
    denoiser, net = models(case["model"])
    net.requires_grad_(True)
    names = published(case["model"], net.state_dict()) if case["model"] == "sdxl" else {}
    weights = {names.get(key, key): tensor for key, tensor in net.named_parameters()}
    kept = schedules.ddpm_kept()[torch.tensor(case["timesteps"])]
    clean, noise = (inputs(f"kcn.{name}.{what}", case["shape"]) for what in ("latents", "noise"))
    what = given(case, objectives.ddpm_noisy(0.8 * clean, noise, kept))
    is_velocity = case["v_parameterization"]
    target = objectives.ddpm_velocity(0.8 * clean, noise, kept) if is_velocity else noise
    output = controlled(case, denoiser, what, controlnet.predict(net, shown(case), *what))
    weigh = SnrWeights(
        is_velocity=is_velocity,
        min_snr_gamma=case["min_snr_gamma"],
        velocity_like=case.get("v_pred_like_loss"),
        is_debiased=case.get("debiased_estimation_loss", False),
    )
    per_sample = losses.l2(output, target).mean(dim=(1, 2, 3)) * torch.tensor(case["loss_weights"])
    factors = weigh(schedules.signal_to_noise(kept))
    loss = (per_sample if factors is None else per_sample * factors).mean()
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    net.requires_grad_(False)
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    assert norm.item() == pytest.approx(case["grad_norm"], rel=1e-4)
    for key in quantities(NUMBERS, name):
        assert_recorded(gradients[key.removeprefix("grad/")], NUMBERS, f"{name}/{key}", 2e-4)


def test_a_new_controlnet_has_the_recorded_beginning() -> None:
    case, (denoiser, _) = CASES["sd_init"], models("sd")
    state = denoiser.state_dict()
    view = TensorView(Path("derived"), {name: tuple(t.shape) for name, t in state.items()}, state.__getitem__)
    begun = controlnet.begin(view, torch.float32, CPU).state_dict()
    assert {*begun} == {*case["copied"], *case["zero"], *case["random"]}
    assert all(torch.equal(begun[name], state[name]) for name in case["copied"])
    assert not any(begun[name].any() for name in case["zero"])
    assert all(begun[name].any() for name in case["random"])


def test_names_in_files_are_the_recorded_ones() -> None:
    names = set(models("sd")[1].state_dict())
    assert controlnet_names.published_names(names) == CASES["sd_names"]["map"]
    back = controlnet_names.diffusers_names(CASES["sd_names"]["map"].values())
    assert back == {file: ours for ours, file in CASES["sd_names"]["map"].items()}
    state, case = models("sdxl")[1].state_dict(), CASES["xl_names"]
    rows = sorted(f"{name}|{tuple(tensor.shape)}" for name, tensor in state.items())
    assert len(rows) == case["count"]
    assert unet_names.diffusers_names(case["map"]) == case["map"]
