"""LoRAs of another rank are those that sd-scripts makes, layer by layer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.cli.main import script
from tests import tiny
from tests.golden.derived import arrays, assert_recorded, cases, error, rule, settings
from tests.golden.toy_loras import toy_lora

NAME = "e_tools"
NUMBERS = arrays(NAME)
CASES = cases(NAME)
EXTRACTED = [case for case in CASES if "delta_K" in case]
RESIZED = [case for case in CASES if "dynamic_method" in case or "error" in case]


def options(case: dict[str, Any]) -> list[str]:
    names = ("new_rank", "new_conv_rank", "dynamic_method", "dynamic_param")
    return [word for name in names if case.get(name) for word in (f"--{name}", str(case[name]))]


def check_layers(case: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Compare rank, alpha, norms, leading singular values and the product of each layer."""
    for layer, rank, alpha, norm, down_norm, up_norm in case["modules"]:
        up, down = (tensors[f"{layer}.lora_{way}.weight"].flatten(1) for way in ("up", "down"))
        product = up @ down * tensors[f"{layer}.alpha"] / rank
        assert (down.shape[0], tensors[f"{layer}.alpha"].item()) == (rank, alpha)
        found = [product.norm().item(), down.norm().item(), up.norm().item()]
        assert found == pytest.approx([norm, down_norm, up_norm], rel=1e-4)
        assert_recorded(product, NUMBERS, f"{case['id']}/{layer}/product", 1e-4)
        values = NUMBERS[f"{case['id']}/{layer}/singular_values"]
        assert error(torch.linalg.svdvals(product)[: len(values)], values) < 1e-4


@pytest.mark.parametrize("case", RESIZED, ids=lambda case: case["id"])
def test_a_resized_lora_is_that_of_sd_scripts(case: dict[str, Any], tmp_path: Path) -> None:
    is_too_high = "error" in case
    if is_too_high:  # sd-scripts fails where a layer is smaller than the rank
        case = {**case, "input": "sdA", "new_rank": 16}
    save_file(toy_lora(NAME, case["input"]), tmp_path / "in.safetensors")
    argv = f"--model {tmp_path}/in.safetensors --save_to {tmp_path}/out.safetensors --save_precision float"
    assert script("networks/resize_lora", [*argv.split(), *options(case)]) == 0
    resized = load_file(tmp_path / "out.safetensors")
    if not is_too_high:
        assert {row[0] for row in case["modules"]} == {name.partition(".")[0] for name in resized}
        check_layers(case, resized)
        return
    before = toy_lora(NAME, "sdA")
    for layer in {name.partition(".")[0] for name in before}:
        ups, downs = (
            [each[f"{layer}.lora_{way}.weight"].flatten(1) for each in (before, resized)]
            for way in ("up", "down")
        )
        rank = downs[1].shape[0]
        assert rank == min(16, ups[0].shape[0], downs[0].shape[1])
        scales = [each[f"{layer}.alpha"] / rank for each, rank in ((before, len(downs[0])), (resized, rank))]
        torch.testing.assert_close(
            ups[1] @ downs[1] * scales[1], ups[0] @ downs[0] * scales[0], atol=1e-5, rtol=1e-4
        )
        torch.testing.assert_close(downs[1] @ downs[1].T, torch.eye(rank), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", EXTRACTED, ids=lambda case: case["id"])
def test_an_extracted_lora_is_that_of_sd_scripts(case: dict[str, Any], tmp_path: Path) -> None:
    base = next(case for case in CASES if "base_K" in case)
    shapes = dict(tiny.flux_transformer(24, 2, depth=2, depth_single=3))
    original, layers = tiny.random_weights(shapes, 0), settings(NAME)["loras"]["fxA"]["modules"]
    names = [
        name for name in shapes if f"lora_unet_{name}".replace(".", "_").removesuffix("_weight") in layers
    ]
    assert len(names) == len(case["modules"])
    tuned = dict(original)
    for name in names:
        original[name] = rule(base["base_K"].replace("<name>", name), shapes[name]) * base["base_std"]
        change = rule(case["delta_K"].replace("<name>", name), shapes[name]) * case["delta_std"]
        tuned[name] = original[name] + change
    save_file(original, tmp_path / "original.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    files = f"--model_org {tmp_path}/original.safetensors --model_tuned {tmp_path}/tuned.safetensors"
    clamp = f"--dim {case['dim']} --clamp_quantile {case['clamp_quantile'] or 1}"
    argv = f"{files} --save_to {tmp_path}/lora.safetensors {clamp}".split()
    assert script("networks/flux_extract_lora", argv) == 0
    lora = load_file(tmp_path / "lora.safetensors")
    assert {name.partition(".")[0] for name in lora} == {row[0] for row in case["modules"]}
    if not case["sign_dependent"]:
        check_layers(case, lora)
        return
    for layer, rank, alpha, *norms in case["modules"]:  # there, signs of singular vectors decide what is cut
        up, down = (lora[f"{layer}.lora_{way}.weight"] for way in ("up", "down"))
        assert (len(down), lora[f"{layer}.alpha"].item()) == (rank, alpha)
        found = [(up @ down).norm().item(), down.norm().item(), up.norm().item()]
        assert found == pytest.approx(norms, rel=0.05)
