"""Weights changed within the backward pass are those of sd-scripts: Adafactor, shares, steps of a UNet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.models.components.unet import unet, unet_names
from sfumato.training.core.plan import Plan
from sfumato.training.update import optimizers, shares
from sfumato.training.update.fused import FusedUpdate
from sfumato.training.update.shares import Cut
from sfumato.training.update.stepping import Rounding, Stepping
from tests.golden.derived import arrays, assert_recorded, cases, error, inputs, quantities, settings, weight
from tests.runs import others_slow

NUMBERS = arrays("k_sdxl_train")
CASES = {case["id"]: case for case in cases("k_sdxl_train")}
PREFIX, NAMES = (settings("k_sdxl_train")[key] for key in ("input_prefix", "key_prefix"))
ADAFACTOR = {"scale_parameter": "False", "relative_step": "False", "warmup_init": "False"}


class Alone:
    """The only process."""

    rank, world, device = 0, 1, torch.device("cpu")

    def sum_(self, tensor: Tensor) -> None:
        """Sum over one process."""


def fused(
    weights: Iterable[nn.Parameter],
    name: str,
    told: Mapping[str, str],
    lr: float | None,
    clip: float,
    cut: Cut = shares.weight_by_weight,
    rounding: Rounding | None = None,
) -> FusedUpdate:
    """Return what changes these weights within the backward pass."""
    arguments = tuple(f"{key}={value}" for key, value in told.items())
    plan = optimizers.plan(OptimizerConfig(name, optimizer_args=arguments, max_grad_norm=clip))
    groups, places = shares.divide([{"params": list(weights)}], cut)
    stepping = Stepping(plan.build(groups, lr or 0.0), rate_places=places, rounding=rounding)
    return FusedUpdate(stepping, Alone(), clip)  # type: ignore[arg-type]


def take(update: FusedUpdate, number: int, loss: Tensor) -> float:
    """Take step `number`, counted from 1; return the loss."""
    update.begin(Plan(1, 1, number).step(number))
    update.accumulate(loss)
    return update.finish()[0].item()


def with_gradient(parameter: nn.Parameter, gradient: Tensor) -> Tensor:
    """Return a loss that has this gradient."""
    return (parameter.float() * gradient).sum()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "shapes" in case])
def test_adafactor_changes_tensor_by_tensor_what_is_recorded(name: str) -> None:
    case, stem = CASES[name], f"{PREFIX}{name}"
    weights = {k: nn.Parameter(0.5 * inputs(f"{stem}.p.{k}", shape)) for k, shape in case["shapes"].items()}
    told = case["optimizer_args"]
    update = fused(weights.values(), "adafactor", told, case["lr"], case["max_grad_norm"])
    for number in range(1, 4):
        drawn = {k: number * inputs(f"{stem}.g{number - 1}.{k}", w.shape) for k, w in weights.items()}
        losses = [with_gradient(weights[k], gradient) for k, gradient in drawn.items()]
        take(update, number, torch.stack(losses).sum())
        for key, parameter in weights.items():
            assert error(parameter.detach(), NUMBERS[f"{name}/step{number}/{key}"]) < 1e-6


@pytest.mark.parametrize("name", [name for name in CASES if f"{name}/lower" in NUMBERS])
def test_bfloat16_weights_are_rounded_to_a_neighbour_of_the_recorded_result(name: str) -> None:
    case = CASES[name]
    bounds = torch.stack([NUMBERS[f"{name}/{which}"] for which in ("lower", "upper")])
    parameter = nn.Parameter(inputs(f"{PREFIX}{name}.p", bounds.shape[1:]).bfloat16())
    rounding = Rounding(123, [parameter])
    update = fused([parameter], "adafactor", case["optimizer_args"], case["lr"], 0.0, rounding=rounding)
    take(update, 1, with_gradient(parameter, inputs(f"{PREFIX}{name}.g", parameter.shape)))
    changed = parameter.detach().float()
    assert (bounds.amin(0) <= changed).all()
    assert (changed <= bounds.amax(0)).all()


@pytest.mark.parametrize("case", CASES["chunks"]["cases"], ids=lambda case: str(case["group_sizes"]))
def test_shares_have_the_recorded_rates_but_equal_sizes(case: dict[str, Any]) -> None:
    """sd-scripts cuts by count and leaves what remains to the last share of a rate."""
    groups = [
        {"params": [nn.Parameter(torch.zeros(2)) for _ in range(size)], "lr": rate}
        for size, rate in zip(case["group_sizes"], case["group_lr"], strict=True)
    ]
    num = case["fused_optimizer_groups"]
    found, places = shares.divide(groups, shares.by_size(num, 8 * sum(case["group_sizes"])))
    assert [found[place]["lr"] for place in places] == case["group_lr"]
    assert _rates(found) == _rates(case["chunks"])
    for _, alike in groupby(found, lambda share: share["lr"]):
        counts = [len(share["params"]) for share in alike]
        assert max(counts) - min(counts) <= 1
    order = [id(weight) for group in groups for weight in group["params"]]
    assert [id(weight) for share in found for weight in share["params"]] == order


def _rates(groups: Iterable[Mapping[str, Any]]) -> list[float]:
    return [rate for rate, _ in groupby(group["lr"] for group in groups)]


@pytest.mark.whole_model
@pytest.mark.parametrize(
    "name",
    others_slow([name for name, case in CASES.items() if "mode" in case], ["net_fog"]),
)
def test_whole_steps_of_a_unet_are_the_recorded_ones(name: str) -> None:
    case, stem = CASES[name], f"{PREFIX}{name}"
    model = _unet()
    weights, num_bytes = list(model.parameters()), sum(weight.nbytes for weight in model.parameters())
    is_adafactor = case["optimizer"].startswith("Adafactor")
    kind, told = ("adafactor", ADAFACTOR) if is_adafactor else ("AdamW", {})
    num = case.get("fused_optimizer_groups")
    cut = shares.by_size(num, num_bytes) if num else shares.weight_by_weight
    update = fused(weights, kind, told, case["lr"], case["max_grad_norm"], cut)
    for number, timestep in enumerate(case["t"]):
        loss = _loss(model, f"{stem}.", number, case["shape"], timestep)
        assert take(update, number + 1, loss) == pytest.approx(case["loss"][number], rel=1e-4)
    names = unet_names.diffusers_names(unet_names.published_names(model.state_dict()).values())
    for quantity in quantities(NUMBERS, name):
        assert_recorded(model.get_parameter(names[quantity]), NUMBERS, f"{name}/{quantity}", 1e-4)


def _unet() -> Any:
    sizes = settings("k_sdxl_train")["unet"]
    width, context, vector = sizes["model_channels"], sizes["context_dim"], sizes["adm"]
    shape = unet.UnetShape(4, 4, 2, (width, 2 * width, 4 * width), (0, 2, 10), 10, context, vector, True)
    model: Any = unet.build(shape).to_empty(device="cpu")
    names, std = unet_names.published_names(model.state_dict()), sizes["weight_std"]
    model.load_state_dict({k: weight(NAMES + names[k], v.shape, std) for k, v in model.state_dict().items()})
    return model


def _loss(model: Any, stem: str, number: int, shape: list[int], timestep: int) -> Tensor:
    sizes = settings("k_sdxl_train")["unet"]
    pooled = inputs(f"{stem}y{number}", (shape[0], sizes["adm"]))
    model.get_aug_embed = lambda **_: model.add_embedding(pooled)
    context = inputs(f"{stem}ctx{number}", (shape[0], 77, sizes["context_dim"]))
    noisy, target = (inputs(f"{stem}{which}{number}", shape) for which in ("x", "target"))
    out = model(noisy, torch.tensor([timestep]), context, added_cond_kwargs={}).sample
    return (out - target).square().mean()
