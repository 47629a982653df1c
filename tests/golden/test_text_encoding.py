"""FLUX's text encoders, read from files as published, give the numbers that sd-scripts gives."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.models import text_encoders
from sfumato.models.flux import text
from tests.golden.derived import HERE, error, settings, weight
from tests.vocabularies import write_cache

RECORDED = settings("d_text_encode_seed")
CASES = [case for case in RECORDED["cases"] if case["id"].startswith("flux")]
NUMBERS = load_file(HERE / "d_text_encode_flux.safetensors")

# float32 files must give the numbers; smaller formats are told apart from a wrong file by these.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.float8_e4m3fn: 0.2}

Shapes = Iterator[tuple[str, tuple[int, ...]]]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> text.FluxTokenizers:
    return text.load_tokenizers(write_cache(tmp_path_factory.mktemp("tokenizers")))


@pytest.fixture(scope="module")
def weights() -> dict[str, dict[str, Tensor]]:
    std = RECORDED["weight_std"]
    clip = {name: weight(name, shape, std) for name, shape in clip_shapes()}
    t5 = {name: weight(name, shape, std) for name, shape in t5_shapes()}
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


def clip_shapes(width: int = 32, layers: int = 4) -> Shapes:
    yield "text_model.embeddings.token_embedding.weight", (49_408, width)
    yield "text_model.embeddings.position_embedding.weight", (77, width)
    for layer in [f"text_model.encoder.layers.{i}" for i in range(layers)]:
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"{layer}.self_attn.{name}.weight", (width, width)
            yield f"{layer}.self_attn.{name}.bias", (width,)
        for name, shape in {"fc1": (4 * width, width), "fc2": (width, 4 * width)}.items():
            yield f"{layer}.mlp.{name}.weight", shape
            yield f"{layer}.mlp.{name}.bias", shape[:1]
        for norm in (f"{layer}.layer_norm1", f"{layer}.layer_norm2"):
            yield f"{norm}.weight", (width,)
            yield f"{norm}.bias", (width,)
    yield "text_model.final_layer_norm.weight", (width,)
    yield "text_model.final_layer_norm.bias", (width,)


def t5_shapes(width: int = 32, layers: int = 3, heads: int = 4) -> Shapes:
    yield "encoder.embed_tokens.weight", (32_128, width)
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    yield bias, (32, heads)
    for block in [f"encoder.block.{i}" for i in range(layers)]:
        for name in "qkvo":
            yield f"{block}.layer.0.SelfAttention.{name}.weight", (width, width)
        yield f"{block}.layer.0.layer_norm.weight", (width,)
        for name in ("wi_0", "wi_1"):
            yield f"{block}.layer.1.DenseReluDense.{name}.weight", (2 * width, width)
        yield f"{block}.layer.1.DenseReluDense.wo.weight", (width, 2 * width)
        yield f"{block}.layer.1.layer_norm.weight", (width,)
    yield "encoder.final_layer_norm.weight", (width,)


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
