"""The FLUX transformer gives the numbers that sd-scripts gives, on the same weights and inputs."""

import pytest
import torch

from sfumato.models.families.flux.network import Flux, FluxShape, axes_of, rotate, rotation, time_embedding
from tests.golden.derived import arrays, assert_recorded, cases, rule, settings, weight
from tests.golden.flux_model import shape_of

CASES = [case for case in cases("a_flux_seed") if "params" in case]
PRIMITIVES = [case for case in cases("a_flux_seed") if "params" not in case]
NUMBERS = arrays("a_flux_seed")
PREFIX = settings("a_flux_seed").get("key_prefix", "")


def inputs(name: str, *shape: int) -> torch.Tensor:
    return rule(f"input:aflux.{name}", shape)


def build(case: dict) -> Flux:
    shape = shape_of(case["params"])
    model = Flux(shape)
    model.load_state_dict(
        {k: weight(PREFIX + k, v.shape, case["weight_std"]) for k, v in model.state_dict().items()}
    )
    inferred = FluxShape.of({k: tuple(v.shape) for k, v in model.state_dict().items()})
    assert inferred == shape
    return model


def run(model: Flux, case: dict) -> torch.Tensor:
    batch, (height, width), length = case["batch"], case["latent_hw"], case["txt_len"]
    params = case["params"]
    channels = params["in_channels"] // 4
    latents = inputs(f"{case['id']}.latents", batch, channels, height, width)
    packed = (
        latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
        .permute(0, 2, 4, 1, 3, 5)
        .reshape(batch, height * width // 4, 4 * channels)
    )
    rows, columns = torch.meshgrid(torch.arange(height // 2), torch.arange(width // 2), indexing="ij")
    ids = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(1, -1, 3).expand(batch, -1, -1)
    mask = case["txt_attention_mask"]
    return model(
        packed,
        ids,
        inputs(f"{case['id']}.txt", batch, length, params["context_in_dim"]),
        torch.zeros(batch, length, 3),
        torch.tensor(case["timesteps"]),
        inputs(f"{case['id']}.vec", batch, params["vec_in_dim"]),
        None if case["guidance"] is None else torch.tensor(case["guidance"]),
        None if mask is None else torch.tensor(mask),
    )


def test_every_case_is_checked() -> None:
    print(f"a_flux_seed: {len(CASES)} cases")
    assert {case["id"] for case in CASES + PRIMITIVES} == {name.split("/")[0] for name in NUMBERS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_output_loss_and_gradients_agree(case: dict) -> None:
    model = build(case)
    out = run(model, case)
    target = inputs(f"{case['id']}.target", *case["out_shape"])
    loss = (out - target).square().mean()
    loss.backward()
    assert list(out.shape) == case["out_shape"]
    assert_recorded(out.detach(), NUMBERS, f"{case['id']}/out", 1e-5)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    for name in case["grads"]:
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert_recorded(gradient, NUMBERS, f"{case['id']}/grad/{name}", 1e-4)


def test_primitives_agree() -> None:
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    image = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).reshape(1, -1, 3)
    cos, sin = rotation(torch.cat((torch.zeros(1, 3, 3), image), dim=1), (4, 10, 10))
    matrix = torch.stack((cos, -sin, sin, cos), dim=-1).unflatten(-1, (2, 2))
    torch.testing.assert_close(matrix, NUMBERS["prim/rope_pe"], rtol=0, atol=1e-7)
    for name in ("q", "k"):
        assert_recorded(
            rotate(inputs(f"prim.{name}", 1, 4, 15, 24), (cos, sin)), NUMBERS, f"prim/rope_{name}", 1e-6
        )
    embedded = time_embedding(torch.tensor([0, 0.001, 0.25, 0.5, 0.999, 1, 3.5]))
    torch.testing.assert_close(embedded, NUMBERS["prim/timestep_embedding"], rtol=0, atol=1e-6)


def test_heads_are_divided_among_axes_as_published() -> None:
    assert axes_of(128) == (16, 56, 56)
    assert axes_of(24) == (4, 10, 10)
    for width in range(4, 257, 2):
        assert sum(axes_of(width)) == width
        assert all(axis > 0 and axis % 2 == 0 for axis in axes_of(width)) or width < 10
