"""Blocks and text encoders have the recorded parameter groups, and logs the recorded names."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
from torch import nn

from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.trained_parts import TrainedPartsConfig
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.unet import unet, unet_names
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from sfumato.training.core.plan import Step
from sfumato.training.core.readings import Rate, Reading
from sfumato.training.trainables import ParameterGroup
from sfumato.training.trainables.part_rates import PartRates, rates_for
from tests.golden.derived import cases

ORDER = """
time_embed label_emb input_blocks middle_block output_blocks out op
in_layers emb_layers out_layers skip_connection norm proj_in transformer_blocks
attn1 ff attn2 norm1 norm2 norm3 proj_out to_q to_k to_v to_out net proj conv weight bias
""".split()  # noqa: SIM905
"""In which order the original network has its modules."""
SHAPE = unet.UnetShape(4, 4, 2, (32, 64, 128), (0, 2, 10), 10, 48, 1568, is_linear=True)
FAMILY = SdxlFamily(None)


def case(name: str) -> dict[str, Any]:
    """Return the recorded case of that name."""
    return next(case for case in cases("k_sdxl_train") if case["id"] == name)


def place(name: str) -> list[int]:
    """Return what sorts names as the original network has them."""
    return [int(word) if word.isdecimal() else ORDER.index(word) for word in name.split(".")]


def options(rate: float, **trained: Any) -> Run:
    return Run("x", "sdxl", [OptimizerConfig(learning_rate=rate), TrainedPartsConfig(**trained)])


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    """The denoiser, without numbers, and stand-ins of text encoders."""
    encoders = {part: nn.Linear(2, 2) for part in FAMILY.text_outputs}
    return {DENOISER: unet.build(SHAPE), **encoders}


def test_every_weight_is_in_the_recorded_block(models: dict[str, nn.Module]) -> None:
    numbers = FAMILY.block_numbers(models[DENOISER])
    published = unet_names.published_names(models[DENOISER].state_dict())
    found = defaultdict[int, list[str]](list)
    for name in sorted(numbers, key=lambda name: place(published[name])):
        found[numbers[name]].append(published[name])
    for block in case("block_index")["blocks"]:
        names = found[block["block"]]
        assert len(names) == block["count"]
        assert hashlib.sha256("\n".join(names).encode()).hexdigest() == block["hash"]


def test_blocks_with_rate_zero_have_no_group(
    models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = case("block_zero")
    rates = ",".join(map(str, recorded["block_lr"]))
    run = options(1e-5, block_lr=rates, learning_rate_te1=3e-6, learning_rate_te2=4e-6)
    plan = rates_for(run, FAMILY, trains_encoders=True)
    monkeypatch.setattr(clip, "weights_in_use", lambda model, **_: dict(model.named_parameters()))
    groups = plan.groups(FAMILY, models)
    found = [{"lr": group.learning_rate, "count": len(group.parameters)} for group in groups[:-2]]
    assert found == recorded["groups"]
    assert logged(groups, [group.learning_rate or 0 for group in groups]) == recorded["logged"]
    factors = [0.5 if group.name.startswith("block") else 0.25 for group in groups]
    with_factors = logged(groups, [group.learning_rate or 0 for group in groups], factors)
    assert with_factors == pytest.approx(recorded["logged_prodigy"])


@pytest.mark.parametrize("recorded", case("logs")["cases"])
def test_rates_have_their_recorded_names(
    recorded: dict[str, Any], models: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "weights_in_use", lambda model, **_: dict(model.named_parameters()))
    rates = recorded["rates"]
    unet_rate, encoders = (rates[0], rates[1:]) if recorded["including_unet"] else (0.0, rates)
    plan = PartRates(unet_rate, encoders=dict(zip(FAMILY.text_outputs, encoders, strict=False)))
    factors = [0.5] * len(rates) if recorded["optimizer"] != "AdamW" else None
    assert logged(plan.groups(FAMILY, models), rates, factors) == recorded["logged"]


SD_GROUPS = [
    pytest.param(name, recorded, id=f"{name} {number}")
    for name in ("train_db_groups", "fine_tune_groups")
    for number, recorded in enumerate(case(name)["cases"])
]


@pytest.mark.parametrize(("name", "recorded"), SD_GROUPS)
def test_the_text_encoder_is_trained_at_the_recorded_rate(name: str, recorded: dict[str, Any]) -> None:
    run = options(recorded["learning_rate"], learning_rate_te=recorded["learning_rate_te"])
    plan = rates_for(run, SdFamily(None), trains_encoders=recorded["train_text_encoder"])
    # Where both parts have one rate, the recorded group is one; ours are two, with names of their own.
    theirs = {weight.split(".")[0]: group["lr"] for group in recorded["groups"] for weight in group["params"]}
    ours = {"unet": plan.denoiser, **dict(zip(["te"], plan.encoders.values(), strict=False))}
    assert ours == theirs


def logged(
    groups: Sequence[ParameterGroup], rates: Sequence[float], factors: Sequence[float] | None = None
) -> dict[str, float]:
    """Return what a run records of these rates, which an optimizer may multiply."""
    shown = [Rate(rate, factor) for rate, factor in zip(rates, factors or [None] * len(rates), strict=True)]
    reading = Reading(Step(1, 1, range(1), 0, ends_epoch=True, is_last=True), 0.0, 0.0, shown, [])
    return reading.rate_figures([group.name for group in groups])
