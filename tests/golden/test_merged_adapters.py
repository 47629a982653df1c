"""Adapters merged by the tools equal recorded results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.network.weight_changes import Adapter, changed
from sfumato.adapters.sd_scripts import block_weights
from sfumato.cli.main import script
from sfumato.models.interface.targets import AdapterTarget
from tests.golden.derived import (
    arrays,
    assert_recorded,
    cases,
    error,
    rule,
    settings,
)
from tests.golden.toy_loras import toy_lora

NAME = "e_tools"
ARRAYS = arrays(NAME)
MERGED = [case for case in cases(NAME) if "concat" in case]
REDUCED = [case for case in cases(NAME) if case.get("clamp") is False]
CLAMPED = [case for case in cases(NAME) if case.get("clamp")]
WHOLE = [case for case in cases(NAME) if "base_K" in case]
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("loras")
    paths = {name: folder / f"{name}.safetensors" for name in settings(NAME)["loras"]}
    for name, path in paths.items():
        save_file(toy_lora(NAME, name), path)
    return paths


def merge(
    tool: str, case: dict[str, Any], files: dict[str, Path], output: Path, *more: str
) -> dict[str, Tensor]:
    argv = ["--models", *(str(files[name]) for name in case["inputs"]), "--save_to", str(output)]
    argv += ["--ratios", *map(str, case["ratios"]), *more]
    if case.get("lbws"):
        argv += ["--lbws", *(json.dumps(numbers) for numbers in case["lbws"])]
    assert script(f"networks/{tool}", argv) == 0
    return load_file(output)


def check(case: dict[str, Any], found: dict[str, Tensor], tolerance: float) -> None:
    """Compare rank, alpha, product and leading singular values of each layer with a recorded case."""
    assert {name.partition(".")[0] for name in found} == {row[0] for row in case["modules"]}
    most = {
        row[0]: sum(toy_lora(NAME, n)[f"{row[0]}.lora_down.weight"].shape[0] for n in case["inputs"])
        for row in case["modules"]
    }
    for layer, rank, alpha, norm, *_ in case["modules"]:
        down, up = (found[f"{layer}.{half}.weight"].flatten(1) for half in ("lora_down", "lora_up"))
        assert down.shape[0] == min(rank, most[layer])
        if down.shape[0] == rank:
            assert float(found[f"{layer}.alpha"]) == pytest.approx(alpha)
        product = up @ down * (float(found[f"{layer}.alpha"]) / down.shape[0])
        if norm:
            assert_recorded(product, ARRAYS, f"{case['id']}/{layer}/product", tolerance)
        else:
            assert float(product.abs().max()) < 1e-6
        values = torch.linalg.svdvals(product)[: len(ARRAYS[f"{case['id']}/{layer}/singular_values"])]
        expected = ARRAYS[f"{case['id']}/{layer}/singular_values"][: len(values)]
        assert float((values - expected).abs().max()) < tolerance * max(1.0, norm)


@pytest.mark.parametrize("case", MERGED, ids=lambda case: case["id"])
def test_loras_add_up_as_recorded(case: dict[str, Any], files: dict[str, Path], tmp_path: Path) -> None:
    tools = {"sd": "merge_lora", "xl": "sdxl_merge_lora", "fx": "flux_merge_lora"}
    tool = next(tool for start, tool in tools.items() if case["inputs"][0].startswith(start))
    found = merge(tool, case, files, tmp_path / "out.safetensors", *["--concat"] * case["concat"])
    check(case, found, TOLERANCE)
    for layer, _, _, _, of_down, of_up in case["modules"]:
        norms = [float(found[f"{layer}.{half}.weight"].norm()) for half in ("lora_down", "lora_up")]
        assert norms == pytest.approx([of_down, of_up], rel=TOLERANCE)


@pytest.mark.parametrize("case", REDUCED, ids=lambda case: case["id"])
def test_loras_merge_to_a_new_rank_as_recorded(
    case: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    ranks = ["--new_rank", str(case["new_rank"]), "--new_conv_rank", str(case["new_conv_rank"])]
    check(case, merge("svd_merge_lora", case, files, tmp_path / "out.safetensors", *ranks), 1e-4)


def test_clamped_results_differ_only_by_what_the_clamp_cuts_off() -> None:
    for case, cut in zip(REDUCED, CLAMPED, strict=True):
        assert case["inputs"] == cut["inputs"]
        for ours, theirs in zip(case["modules"], cut["modules"], strict=True):
            assert theirs[3] <= ours[3] * (1 + 1e-6), (
                "a clamp makes changes smaller, which is why we have none"
            )


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case["id"])
def test_weights_of_a_model_change_as_recorded(case: dict[str, Any], files: dict[str, Path]) -> None:
    adapters = [
        Adapter.read(files[name], lambda _, ratio=ratio: ratio)
        for name, ratio in zip(case["inputs"], case["ratios"], strict=True)
    ]
    for name in [
        key.removeprefix("fluxmerge/")
        for key in ARRAYS
        if key.startswith("fluxmerge/") and "/" not in key[10:]
    ]:
        recorded = ARRAYS[f"fluxmerge/{name}"]
        weight = rule(case["base_K"].replace("<name>", name), tuple(recorded.shape)) * case["base_std"]
        with torch.device("meta"):
            module = nn.Linear(recorded.shape[1], recorded.shape[0])
        layer = "unet_" + name.removesuffix(".weight").replace(".", "_")
        found = changed(
            weight, AdapterTarget(layer, module, ""), adapters, torch.float32, torch.device("cpu")
        )
        assert error(found, recorded) < TOLERANCE, name
        assert torch.equal(found, weight) == (name == "img_in.weight")


def test_block_weights_are_for_the_recorded_blocks() -> None:
    for layers in settings(NAME)["lbw_block_index"].values():
        for layer, block in layers.items():
            assert block_weights.block_of(layer) == block
