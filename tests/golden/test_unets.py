"""The UNets of Stable Diffusion 1, 2 and XL give sd-scripts' outputs, losses and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.models.components.tensor_views import TensorView
from sfumato.models.components.unet import unet, unet_names
from sfumato.models.families.sdxl.family import framing
from sfumato.models.interface.conditioning import ImageSizes
from tests import tiny
from tests.golden.derived import (
    arrays,
    assert_recorded,
    cases,
    error,
    exists,
    inputs,
    quantities,
    recorded_parts,
    settings,
    weight,
)

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")
# Where each channel is a group of its own, the norm takes out what the timestep adds: that gradient is 0, and
# what is recorded of it is rounding.
ROUNDING = 1e-8
ALL = cases("a_unet_small")
CASES = [case for case in ALL if "weight_std" in case]
NUMBERS = arrays("a_unet_small")
FULL = cases("a_unet_full") if exists("a_unet_full") else []
PREFIX = settings("a_unet_small").get("key_prefix", "")


def shapes_of(case: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a case's UNet as a checkpoint names them."""
    if case["model"] == "sdxl":
        width = case["model_channels"]
        sizes = (width, 2 * width, 4 * width), (0, 2, 10), 2048
        return dict(tiny.ldm_unet(*sizes, is_linear=True, vector=case["adm"]))
    sizes = tuple(case["block_out_channels"]), (1, 1, 1, 0), case["cross_attention_dim"]
    return dict(tiny.ldm_unet(*sizes, is_linear=case["use_linear_projection"]))


def derived(case: dict[str, Any]) -> TensorView:
    """Return a case's weights: SDXL's by the checkpoint's names, others by diffusers'."""
    shapes = shapes_of(case)
    if case["model"] != "sdxl":
        shapes = {ours: shapes[theirs] for theirs, ours in unet_names.diffusers_names(shapes).items()}
    return TensorView(
        Path("derived"), shapes, lambda name: weight(PREFIX + name, shapes[name], case["weight_std"])
    )


def heads(case: dict[str, Any]) -> tuple[int, ...] | None:
    found = case.get("heads")
    return tuple(found) if isinstance(found, list) else None if found is None else (found,) * 4


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


def model_of(case: dict[str, Any], built: dict[str, Any]) -> Any:
    """Return the case's model; the last one is kept, for cases of the same weights come in a row."""
    key = (case["model"], case["weight_std"])
    if key not in built:
        built.clear()
        built[key] = unet.load(derived(case), torch.float32, CPU, num_heads=heads(case))
    return built[key].requires_grad_(False)


def told(model: Any, case: dict[str, Any]) -> dict[str, Tensor] | None:
    if case["model"] != "sdxl":
        return None
    vector = inputs(f"aunet.{case['id']}.y", (case["shape"][0], case["adm"]))
    pooled, framed = vector.split([1280, 6 * unet.SIZE_WIDTH], dim=1)
    # The recorded model takes the embedded framing as it is.
    model.add_time_proj.forward = lambda ids: framed.reshape(-1, unet.SIZE_WIDTH)
    return {"text_embeds": pooled, "time_ids": torch.zeros(case["shape"][0], 6)}


def assert_close(actual: Tensor, name: str, tolerance: float) -> None:
    largest = NUMBERS[f"{name}/stats"][2].item()
    if largest < ROUNDING:
        assert actual.abs().max().item() < ROUNDING, name
        return
    for ours, recorded in recorded_parts(actual, NUMBERS, name):
        assert (ours - recorded).abs().max().item() < tolerance * largest, name


def test_every_recorded_case_is_checked() -> None:
    print(f"a_unet_small: {len(ALL)} cases, a_unet_full: {len(FULL)}")
    assert {case["id"] for case in ALL} == {name.split("/")[0] for name in NUMBERS}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_outputs_losses_and_gradients_agree(case: dict[str, Any], built: dict[str, Any]) -> None:
    model, name = model_of(case, built), case["id"]
    ours = unet_names.diffusers_names(shapes_of(case)) if case["model"] == "sdxl" else {}
    trained = {key: model.get_parameter(ours.get(key, key)).requires_grad_(True) for key in case["grads"]}
    width = 2048 if case["model"] == "sdxl" else case["cross_attention_dim"]
    noisy = inputs(f"aunet.{name}.x", case["shape"])
    context = inputs(f"aunet.{name}.ctx", (case["shape"][0], case["ctx_len"], width))
    target = inputs(f"aunet.{name}.target", case["shape"])

    output = unet.predict(model, noisy, torch.tensor(case["timesteps"]), context, told(model, case))
    loss = ((output - target) ** 2).mean()
    gradients = torch.autograd.grad(loss, list(trained.values()))

    # Processors without AVX-512 round the two of large weights otherwise: 1.8e-5.
    assert error(output.detach(), NUMBERS[f"{name}/out"]) < (3e-5 if case["weight_std"] > 0.03 else 1e-5)
    assert loss.detach().item() == pytest.approx(case["loss"], rel=1e-5)
    for key, gradient in zip(trained, gradients, strict=True):
        assert_close(gradient, f"{name}/grad/{key}", 1e-4)


@pytest.mark.parametrize("kind", quantities(NUMBERS, "t_emb"))
def test_timesteps_are_embedded_as_recorded(kind: str) -> None:
    from diffusers.models.embeddings import Timesteps

    shape = unet.UnetShape.of(dict(tiny.ldm_unet((320, 32), (1, 1), 8, is_linear=kind == "sdxl")))
    embed = unet.build(shape).time_proj
    assert isinstance(embed, Timesteps)
    assert error(embed(torch.tensor([0, 1, 10, 500, 999])), NUMBERS[f"t_emb/{kind}"]) < 1e-6


def test_framing_is_embedded_as_recorded() -> None:
    numbers = arrays("c_sdxl_size_emb")
    shape = unet.UnetShape.of(dict(tiny.ldm_unet((32, 32), (0, 1), 8, is_linear=True, vector=1600)))
    sizes = ImageSizes(numbers["orig"], numbers["crop"], numbers["target"])
    ids = framing(sizes)
    embedded = unet.build(shape).add_time_proj(ids.flatten()).reshape(len(ids), -1)
    assert error(embedded[:2], numbers["embedding_first2"]) < 1e-6
    assert_recorded(embedded, numbers, "embedding_all", 1e-6)


@pytest.mark.slow
@torch.no_grad()
def test_outputs_at_full_width_agree() -> None:
    numbers = arrays("a_unet_full")
    base = {"model": "sd15", "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768}
    settings = {**base, "use_linear_projection": False, "weight_std": FULL[0]["weight_std"], "heads": 8}
    model = unet.load(derived(settings), torch.float32, CPU)
    for case in FULL:
        name = case["id"]
        noisy = inputs(f"aunet.{name}.x", case["shape"])
        context = inputs(f"aunet.{name}.ctx", case["ctx"])
        output = unet.predict(model, noisy, torch.tensor([case["timestep"]]), context)
        assert error(output, numbers[f"{name}/out"]) < 1e-5
