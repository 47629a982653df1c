"""Prompts with emphasis and of every length give the tokens and text states that sd-scripts gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.models.components import emphasis
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.tokenizers import load_clip
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from tests.golden.clip_models import clip_encoder
from tests.golden.derived import arrays, assert_recorded, cases, error, settings
from tests.vocabularies import write_clip

PIECES = cases("d_prompt_weights")
TOKENS = arrays("d_tokens")
TOKEN_CASES = [case for case in cases("d_tokens") if "max_token_length" in case]
ENCODINGS = settings("d_text_encode_seed")
NUMBERS = arrays("d_text_encode_seed")
SD = [case for case in ENCODINGS["cases"] if "model" in case]
SDXL = [case for case in ENCODINGS["cases"] if "models" in case]

# The second tokenizer of SDXL was recorded from a file that ends after this many merges.
RECORDED_MERGES = 40_212


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabularies")
    write_clip(folder / "openai_clip-vit-large-patch14")
    write_clip(folder / "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k", RECORDED_MERGES)
    return folder


def test_every_recorded_case_is_checked() -> None:
    print(f"prompts {len(PIECES)}, tokens {len(TOKEN_CASES)}, encodings {len(SD)} + {len(SDXL)}")
    others = {case["id"] for case in ENCODINGS["cases"] if "t5" in case}
    assert {c["id"] for c in SD + SDXL} == {name.split("/")[0] for name in NUMBERS} - others
    weighted = {name.split("/")[0] for name in TOKENS if "/w_" in name}
    assert {c["id"] for c in TOKEN_CASES} == weighted


@pytest.mark.parametrize("case", PIECES, ids=[case["id"] for case in PIECES])
def test_emphasis_is_read_as_recorded(case: dict[str, Any]) -> None:
    found = emphasis.parse(case["text"])
    assert [text for text, _ in found] == [text for text, _ in case["parsed"]]
    expected = [weight for _, weight in case["parsed"]]
    assert [weight for _, weight in found] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", TOKEN_CASES, ids=[case["id"] for case in TOKEN_CASES])
def test_tokens_with_emphasis_have_the_recorded_weights(case: dict[str, Any], tokenizers: Path) -> None:
    names = {"": "openai_clip-vit-large-patch14"}
    if f"{case['id']}/w_ids1" in TOKENS:
        names = {"1": names[""], "2": "laion_CLIP-ViT-bigG-14-laion2B-39B-b160k"}
    for number, name in names.items():
        is_openclip = number == "2" or case.get("v2", False)
        tokenizer = load_clip(name, cache_dir=tokenizers, pad_token="!" if is_openclip else None)
        windows = clip.num_windows(case["max_token_length"])
        words = clip.read(tokenizer, settings("d_tokens")["prompts"], windows, is_weighted=True)
        assert torch.equal(words.ids, TOKENS[f"{case['id']}/w_ids{number}"].long())
        assert words.weights is not None
        assert error(words.weights, TOKENS[f"{case['id']}/w_weights{number}"]) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("case", SD, ids=[case["id"] for case in SD])
@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
def test_states_of_one_encoder_agree(
    case: dict[str, Any], is_weighted: bool, tokenizers: Path, encoders: dict[str, nn.Module]
) -> None:
    family = SdFamily(
        None,
        tokenizers=tokenizers,
        is_v2=case["v2"],
        clip_skip=case["clip_skip"],
        max_token_length=case["max_token_length"],
        has_emphasis=is_weighted,
    )
    tokens = family.tokenize(ENCODINGS["prompts"])
    state = family.encode_text({"text_encoder": encoders[case["model"]["act"]]}, tokens)["hidden_state"]
    assert list(state.shape) == case["shape"]
    suffix = "_weighted" if is_weighted else ""
    assert_recorded(state, NUMBERS, f"{case['id']}/out{suffix}", 1e-5)
    assert error(state[..., :2], NUMBERS[f"{case['id']}/tok_mean_per_pos{suffix}"]) < 1e-5


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    """Return the encoders of Stable Diffusion 1 and 2 by their activation."""
    return {
        name: clip_encoder(ENCODINGS, model)
        for name, model in {case["model"]["act"]: case["model"] for case in SD}.items()
    }


@pytest.fixture(scope="module")
def both_encoders() -> dict[str, nn.Module]:
    return {
        f"text_encoder{i}": clip_encoder(ENCODINGS, model) for i, model in enumerate(SDXL[0]["models"], 1)
    }


@torch.no_grad()
@pytest.mark.parametrize("case", SDXL, ids=[case["id"] for case in SDXL])
@pytest.mark.parametrize("is_weighted", [False, True], ids=["plain", "weighted"])
def test_states_of_two_encoders_agree(
    case: dict[str, Any], is_weighted: bool, tokenizers: Path, both_encoders: dict[str, nn.Module]
) -> None:
    family = SdxlFamily(
        None, tokenizers=tokenizers, max_token_length=case["max_token_length"], has_emphasis=is_weighted
    )
    outputs = family.encode_text(both_encoders, family.tokenize(ENCODINGS["prompts"]))
    assert [list(outputs[name].shape) for name in outputs] == case["shapes"]
    suffix = "_weighted" if is_weighted else ""
    for number in (1, 2):
        state = outputs[f"hidden_state{number}"]
        assert error(state[..., :2], NUMBERS[f"{case['id']}/h{number}{suffix}"]) < 1e-5
        if not is_weighted:
            assert_recorded(state, NUMBERS, f"{case['id']}/h{number}_big", 1e-5)
    assert error(outputs["pool2"], NUMBERS[f"{case['id']}/pool2{suffix}"]) < 1e-5
