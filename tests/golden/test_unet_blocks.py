"""Ranks, alphas, learning rates and optimizer groups of U-Net blocks are those of sd-scripts."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.selection import Size
from sfumato.adapters.sd_scripts import block_helpers, blocks, network_modules
from sfumato.adapters.sd_scripts.blocks import BlockList
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.registry.families import family_for
from tests.golden.derived import cases
from tests.golden.group_sizes import recorded_size
from tests.golden.unet_models import SD, SDXL

pytestmark = pytest.mark.whole_model

CASES = cases("g_blocks")
RATES = [case for case in CASES if "block_lr_weight" in case]
SIZES = [case for case in CASES if "result" in case]
GROUPS = [case for case in CASES if case.get("family") in (SD.family, SDXL.family)]
LISTS = {False: BlockList(12, 1, 12), True: BlockList(9, 3, 9, before=1, after=1)}


@pytest.fixture(scope="module")
def parts() -> dict[str, dict[str, nn.Module]]:
    """Return models of the recorded sizes; the text encoders are smaller than where layers were recorded."""
    small = (32, 64, "quick_gelu")
    return {r.family: replace(r, texts=dict.fromkeys(r.texts, small)).models() for r in (SD, SDXL)}


@pytest.mark.parametrize("case", RATES, ids=lambda case: case["id"])
def test_rates_of_blocks_equal(case: dict[str, Any]) -> None:
    expected, block_list = case["block_lr_weight"], LISTS[case["sdxl"]]
    if isinstance(expected, str):
        with pytest.raises(UserError, match="one of sine, cosine"):
            blocks.read_rates(case["kwargs"], block_list)
        return
    assert blocks.read_rates(case["kwargs"], block_list) == pytest.approx(tuple(expected or ()), rel=1e-6)


@pytest.mark.parametrize("case", SIZES, ids=lambda case: case["id"])
def test_sizes_of_blocks_equal(case: dict[str, Any]) -> None:
    own = dict(case["inputs"])
    common = Size(own.pop("network_dim"), own.pop("network_alpha"))
    given = {name: str(value) for name, value in own.items() if value is not None}
    block_list = LISTS[case["sdxl"]]
    equal_rates = (1.0,) * len(block_list)
    if isinstance(case["result"], str):
        with pytest.raises(UserError, match="block_dims has 2 numbers for this model's"):
            blocks.read_rule(given, common, block_list, equal_rates)
        return
    rule = blocks.read_rule(given, common, block_list, equal_rates)
    found = [
        list(values) if sizes else None
        for sizes in (rule.by_block, rule.wide_by_block)
        for values in ([size.rank for size in sizes], [size.alpha for size in sizes])
    ]
    assert found == case["result"]


@pytest.mark.parametrize("case", [case for case in RATES if not isinstance(case["block_lr_weight"], str)])
def test_other_programs_are_told_the_rates_of_blocks(case: dict[str, Any]) -> None:
    names = ("down_lr_weight", "mid_lr_weight", "up_lr_weight")
    down, middle, up = (case["kwargs"].get(name) for name in names)
    threshold = float(case["kwargs"].get("block_lr_zero_threshold", 0))
    expected = case["block_lr_weight"]
    for found in (
        block_helpers.parse_block_lr_kwargs(case["sdxl"], case["kwargs"]),
        block_helpers.get_block_lr_weight(case["sdxl"], down, middle, up, threshold),
    ):
        assert found == (expected and pytest.approx(expected, rel=1e-6))


@pytest.mark.parametrize("case", [case for case in SIZES if not isinstance(case["result"], str)])
def test_other_programs_are_told_the_sizes_of_blocks(case: dict[str, Any]) -> None:
    found = block_helpers.get_block_dims_and_alphas(case["sdxl"], *case["inputs"].values())
    assert list(found) == case["result"]
    rates = [float(number % 2) for number in range(len(found[0]))]
    removed = block_helpers.remove_block_dims_and_alphas(case["sdxl"], *found, rates)
    assert removed[0] == [rank if rate else 0 for rank, rate in zip(found[0], rates, strict=True)]
    assert removed[1:2] + removed[3:] == found[1:2] + found[3:]


@pytest.mark.parametrize("case", GROUPS, ids=lambda case: case["id"])
def test_parameter_groups_equal(case: dict[str, Any], parts: dict[str, dict[str, nn.Module]]) -> None:
    config = NetworkConfig(
        network_module="networks.lora",
        network_dim=case["dim"],
        network_alpha=case["alpha"],
        network_args=tuple(f"{key}={value}" for key, value in case["kwargs"].items()),
    )
    plan = network_modules.resolve(Run("", case["family"], [config]))
    network = plan.build(family_for(Run("", case["family"], ())), parts[case["family"]])
    assert isinstance(network, AdapterNetwork)
    rate = case["text_encoder_lr"]
    made = network.parameter_groups(
        case["default_lr"], case["unet_lr"], None if rate is None else [rate, 9.0]
    )
    found = sorted(
        (group.name, *recorded_size(network, group.parameters), group.learning_rate) for group in made
    )
    expected = sorted((g["description"], g["n_params"], g["numel"], g["lr"]) for g in case["groups"])
    assert [group[:3] for group in found] == [group[:3] for group in expected]
    assert [group[3] for group in found] == pytest.approx([group[3] for group in expected], rel=1e-6)
