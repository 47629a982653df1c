"""FLUX's text encoders give the numbers that sd-scripts gives, on the same weights and prompts."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from sfumato.models.flux import text
from tests.golden.derived import HERE, error, settings, weight
from tests.vocabularies import write_cache

RECORDED = settings("d_text_encode_seed")
CASES = [case for case in RECORDED["cases"] if case["id"].startswith("flux")]
NUMBERS = load_file(HERE / "d_text_encode_flux.safetensors")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49_408,
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            eos_token_id=49_407,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=32_128,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=3,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    # Recorded under the names of published files, which keep a level that the module has lost.
    fill(clip, lambda name: name if name.startswith("text_model.") else f"text_model.{name}")
    fill(t5, lambda name: name.replace("shared.", "encoder.embed_tokens."))
    return {"clip_l": clip.eval(), "t5xxl": t5.eval()}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> text.FluxTokenizers:
    return text.load_tokenizers(write_cache(tmp_path_factory.mktemp("tokenizers")))


def fill(module: nn.Module, published: Any) -> None:
    std = RECORDED["weight_std"]
    weights = {name: weight(published(name), old.shape, std) for name, old in module.state_dict().items()}
    module.load_state_dict(weights)


def test_every_recorded_case_is_checked() -> None:
    print(f"text encoding cases: {len(CASES)}")
    assert len(CASES) == len({name.split("/")[0] for name in NUMBERS}) == 4


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_outputs_equal_the_recorded_ones(
    case: dict[str, Any], encoders: dict[str, nn.Module], tokenizers: text.FluxTokenizers
) -> None:
    name, count = case["id"], 256
    tokens = text.tokenize(tokenizers, RECORDED["prompts"], case["t5xxl_max_token_length"])

    outputs = text.encode(encoders, tokens, case["apply_t5_attn_mask"])

    assert error(outputs["l_pooled"], NUMBERS[f"{name}/l_pooled"]) < TOLERANCE
    assert torch.equal(outputs["t5_attn_mask"], NUMBERS[f"{name}/t5_mask"].long())
    state = outputs["t5_out"]
    assert error(state[..., :2], NUMBERS[f"{name}/t5_first2"]) < TOLERANCE
    flat = state.flatten()
    assert error(flat[:count], NUMBERS[f"{name}/t5_out/first"]) < TOLERANCE
    step = max(1, flat.numel() // count)
    assert error(flat[::step][:count], NUMBERS[f"{name}/t5_out/strided"]) < TOLERANCE
    assert flat.double().norm().item() == pytest.approx(
        NUMBERS[f"{name}/t5_out/stats"][3].item(), rel=TOLERANCE
    )
