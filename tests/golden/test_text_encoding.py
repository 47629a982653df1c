"""FLUX's text encoders, read from files as published, give the numbers that sd-scripts gives."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.models import text_encoders
from sfumato.models.flux import text
from tests import tiny
from tests.golden.derived import HERE, error, settings, weight
from tests.vocabularies import write_cache

RECORDED = settings("d_text_encode_seed")
CASES = [case for case in RECORDED["cases"] if case["id"].startswith("flux")]
NUMBERS = load_file(HERE / "d_text_encode_flux.safetensors")

# float32 files must give the numbers; smaller formats are told apart from a wrong file by these.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.float8_e4m3fn: 0.2}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> text.FluxTokenizers:
    return text.load_tokenizers(write_cache(tmp_path_factory.mktemp("tokenizers")))


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    std = RECORDED["weight_std"]
    clip = {name: weight(name, shape, std) for name, shape in tiny.clip_l(49_408, 32, 4)}
    t5 = {name: weight(name, shape, std) for name, shape in tiny.t5(32, 4, 3, vocabulary=32_128)}
    return {"clip_l": clip, "t5xxl": t5 | {"shared.weight": t5["encoder.embed_tokens.weight"].clone()}}


@pytest.fixture(scope="module", params=TOLERANCES, ids=str)
def encoders(
    request: pytest.FixtureRequest,
    weights: dict[str, dict[str, Tensor]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, nn.Module], float]:
    folder, stored = tmp_path_factory.mktemp("encoders"), request.param
    paths = {}
    for part, tensors in weights.items():
        paths[part] = folder / f"{part}.safetensors"
        save_file({name: value.to(stored) for name, value in tensors.items()}, paths[part])
    cpu = torch.device("cpu")
    clip = text_encoders.load_clip(paths["clip_l"], torch.float32, cpu, num_heads=4)
    return {"clip_l": clip, "t5xxl": text_encoders.load_t5(paths["t5xxl"], torch.float32, cpu)}, TOLERANCES[
        stored
    ]


def test_every_recorded_case_is_checked() -> None:
    print(f"text encoding cases: {len(CASES)}")
    assert len(CASES) == len({name.split("/")[0] for name in NUMBERS}) == 4


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_outputs_equal_the_recorded_ones(
    case: dict[str, Any],
    encoders: tuple[dict[str, nn.Module], float],
    tokenizers: text.FluxTokenizers,
) -> None:
    (modules, tolerance), name, count = encoders, case["id"], 256
    tokens = text.tokenize(tokenizers, RECORDED["prompts"], case["t5xxl_max_token_length"])

    outputs = text.encode(modules, tokens, case["apply_t5_attn_mask"])

    assert error(outputs["l_pooled"], NUMBERS[f"{name}/l_pooled"]) < tolerance
    assert torch.equal(outputs["t5_attn_mask"], NUMBERS[f"{name}/t5_mask"].long())
    state = outputs["t5_out"]
    assert error(state[..., :2], NUMBERS[f"{name}/t5_first2"]) < tolerance
    flat = state.flatten()
    assert error(flat[:count], NUMBERS[f"{name}/t5_out/first"]) < tolerance
    step = max(1, flat.numel() // count)
    assert error(flat[::step][:count], NUMBERS[f"{name}/t5_out/strided"]) < tolerance
    norm = NUMBERS[f"{name}/t5_out/stats"][3].item()
    assert flat.double().norm().item() == pytest.approx(norm, rel=tolerance)
