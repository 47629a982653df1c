"""FLUX's text encoders, read from files as published, give the numbers that sd-scripts gives."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.models.components import text_encoders
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.families.flux import text
from sfumato.models.interface.tokenizers import Tokenizers
from tests import tiny
from tests.golden.derived import arrays, assert_recorded, error, settings, weight
from tests.vocabularies import write_cache

RECORDED = settings("d_text_encode_seed")
CASES = [case for case in RECORDED["cases"] if "t5" in case and "clip" in case]
NUMBERS = arrays("d_text_encode_seed")

# float32 files must give the numbers; smaller formats are told apart from a wrong file by these.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.float8_e4m3fn: 0.2}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers[Tokenizer]:
    return text.tokenizers(write_cache(tmp_path_factory.mktemp("tokenizers")))


def derived(names: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, Tensor]:
    prefix, std = RECORDED.get("key_prefix", ""), RECORDED["weight_std"]
    return {name: weight(prefix + name, shape, std) for name, shape in names}


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    sizes = CASES[0]["clip"], CASES[0]["t5"]
    assert all((case["clip"], case["t5"]) == sizes for case in CASES)
    clip = derived(tiny.clip_l(49_408, sizes[0]["hidden"], sizes[0]["layers"]))
    t5 = derived(tiny.t5(sizes[1]["d_model"], sizes[1]["heads"], sizes[1]["layers"], vocabulary=32_128))
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
    heads = CASES[0]["clip"]["heads"]
    clip = text_encoders.load_clip(paths["clip_l"], torch.float32, cpu, num_heads=heads)
    return {"clip_l": clip, "t5xxl": text_encoders.load_t5(paths["t5xxl"], torch.float32, cpu)}, TOLERANCES[
        stored
    ]


def test_every_recorded_case_is_checked() -> None:
    print(f"text encoding cases: {len(CASES)}")
    others = {case["id"] for case in RECORDED["cases"]} - {case["id"] for case in CASES}
    assert {name.split("/")[0] for name in NUMBERS} - others == {case["id"] for case in CASES}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_outputs_equal_the_recorded_ones(
    case: dict[str, Any],
    encoders: tuple[dict[str, nn.Module], float],
    tokenizers: Tokenizers[Tokenizer],
) -> None:
    (modules, tolerance), name = encoders, case["id"]
    tokens = text.tokenize(tokenizers, RECORDED["prompts"], case["t5xxl_max_token_length"])

    outputs = text.encode(modules, tokens, case["apply_t5_attn_mask"])

    assert error(outputs["l_pooled"], NUMBERS[f"{name}/l_pooled"]) < tolerance
    assert torch.equal(outputs["t5_attn_mask"], NUMBERS[f"{name}/t5_mask"].long())
    state = outputs["t5_out"]
    assert error(state[..., :2], NUMBERS[f"{name}/t5_first2"]) < tolerance
    assert_recorded(state, NUMBERS, f"{name}/t5_out", tolerance)
