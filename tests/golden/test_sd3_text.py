"""The text encoders of Stable Diffusion 3 give the numbers that sd-scripts gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sfumato.models.components import text_encoders
from sfumato.models.components.tensor_views import TensorView
from sfumato.models.families.sd3 import text
from sfumato.models.families.sd3.text import CLIP_G, CLIP_L, T5XXL
from tests import tiny
from tests.golden.derived import arrays, assert_recorded, cases, error, settings, weight
from tests.vocabularies import write_cache

NAME = "d_text_encode_head"
NUMBERS = arrays(NAME)
CASES = [case for case in cases(NAME) if case["id"].startswith("sd3")]
_CLIPS = {CLIP_L: (32, "", "quick_gelu"), CLIP_G: (40, "te2:", "gelu")}
_LENGTH = 64


def derived(shapes: tiny.Shapes, prefix: str = "") -> TensorView:
    before, std = settings(NAME)["key_prefix"] + prefix, settings(NAME)["weight_std"]
    return TensorView(Path("derived"), shapes, lambda name: weight(before + name, shapes[name], std))


def clip(width: int, prefix: str, activation: str) -> nn.Module:
    shapes = dict(tiny.clip_l(49_408, width, layers=4)) | {"text_projection.weight": (width, width)}
    view, cpu = derived(shapes, prefix), torch.device("cpu")
    return text_encoders.load_clip_view(
        view, torch.float32, cpu, activation=activation, num_heads=4, has_projection=True
    )


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    shapes = dict(tiny.t5(32, 4, 3, vocabulary=32_128))
    view, file = derived(shapes), tmp_path_factory.mktemp("t5") / "t5.safetensors"
    tensors = {name: view.get(name) for name in shapes}
    save_file(tensors | {"shared.weight": tensors["encoder.embed_tokens.weight"].clone()}, file)
    t5 = text_encoders.load_t5(file, torch.float32, torch.device("cpu"))
    return {part: clip(*values) for part, values in _CLIPS.items()} | {T5XXL: t5}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    places = write_cache(tmp_path_factory.mktemp("tokenizers"))
    return text.tokenize(
        text.tokenizers(places, None, list(text.OUTPUTS)), settings(NAME)["prompts"], _LENGTH
    )


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_outputs_equal_the_recorded_ones(
    case: dict[str, Any], encoders: dict[str, nn.Module], tokens: dict[str, torch.Tensor]
) -> None:
    clips = [CLIP_L, CLIP_G] if case["apply_lg_attn_mask"] else []
    outputs = text.encode(encoders, tokens, [*clips, *([T5XXL] if case["apply_t5_attn_mask"] else [])])

    states = torch.cat([outputs["l_out"], outputs["g_out"]], dim=-1)
    assert_recorded(states, NUMBERS, f"{case['id']}/lg_out", 1e-5)
    assert error(text.pooled(outputs), NUMBERS[f"{case['id']}/lg_pooled"]) < 1e-5
    assert_recorded(outputs["t5_out"], NUMBERS, f"{case['id']}/t5_out", 1e-5)
    assert outputs["t5_attn_mask"].sum(1).tolist()[:2] == [1, 8]


def test_context_is_both_clips_widened_and_then_t5() -> None:
    words = {"l_out": torch.ones(1, 77, 3), "g_out": torch.full((1, 77, 2), 2.0)}
    without = text.context(words, 8)
    assert without[0, :77, :5].unique().tolist() == [1, 2]
    assert without.shape == (1, 154, 8)
    assert not without[0, :77, 5:].any()
    assert not without[0, 77:].any()
    t5 = torch.full((1, 9, 8), 3.0)
    assert torch.equal(text.context(words | {"t5_out": t5}, 8)[:, 77:], t5)
