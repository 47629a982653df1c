"""Token ids equal those of sd-scripts for every recorded tokenizer and length, with the real vocabularies."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.models.components.tokenizers import CLIP_LENGTH, Tokenizer, load_clip, load_t5
from sfumato.models.families.flux import text
from tests.golden.derived import arrays, cases, settings
from tests.vocabularies import write_cache, write_clip

PROMPTS = settings("d_tokens")["prompts"]
CASES = cases("d_tokens")
NUMBERS = arrays("d_tokens")
KINDS = ("l_mask", "clip_l", "ids1", "ids")
"""What there is for three encoders, FLUX.1, two encoders and one: the first that is recorded tells."""

# The second tokenizer of SDXL and SD3 was recorded from a file that ends after this many merges.
RECORDED_MERGES = 40_212


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_cache(tmp_path_factory.mktemp("tokenizers"))
    write_clip(folder / "cut", RECORDED_MERGES)
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Tokenizer:
    return load_clip(cache_dir=folder)


@pytest.fixture(scope="module")
def padded_clip(folder: Path) -> Tokenizer:
    return load_clip(cache_dir=folder, pad_token="!")


@pytest.fixture(scope="module")
def cut_clip(folder: Path) -> Tokenizer:
    return load_clip("cut", cache_dir=folder, pad_token="!")


def kind_of(case: dict[str, Any]) -> str | None:
    return next((kind for kind in KINDS if f"{case['id']}/{kind}" in NUMBERS), None)


def of_kind(kind: str) -> list[Any]:
    return [pytest.param(case, id=case["id"]) for case in CASES if kind_of(case) == kind]


def assert_equal(ids: Tensor, name: str) -> None:
    assert ids.dtype == torch.int64
    assert torch.equal(ids, NUMBERS[name].long()), name


def test_every_recorded_case_is_checked() -> None:
    print(f"token cases: {len(CASES)}")
    assert [case["id"] for case in CASES if kind_of(case) is None] == []


@pytest.mark.parametrize("case", of_kind("clip_l"))
def test_flux_captions(case: dict[str, Any], folder: Path) -> None:
    length = NUMBERS[f"{case['id']}/t5"].shape[-1]
    tokens = text.tokenize(text.tokenizers(folder), PROMPTS, length)
    assert_equal(tokens["clip_l"], f"{case['id']}/clip_l")
    assert_equal(tokens["t5xxl"], f"{case['id']}/t5")
    assert_equal(tokens["t5xxl_mask"], f"{case['id']}/t5_mask")


@pytest.mark.parametrize("case", of_kind("ids"))
def test_windows_of_one_encoder(case: dict[str, Any], clip: Tokenizer, padded_clip: Tokenizer) -> None:
    tokenizer = padded_clip if case["v2"] else clip
    assert_equal(tokenizer.windows(PROMPTS, case["shape"][1]), f"{case['id']}/ids")


@pytest.mark.parametrize("case", of_kind("ids1"))
def test_windows_of_two_encoders(case: dict[str, Any], clip: Tokenizer, cut_clip: Tokenizer) -> None:
    assert_equal(clip.windows(PROMPTS, case["shape"][1]), f"{case['id']}/ids1")
    assert_equal(cut_clip.windows(PROMPTS, case["shape"][1]), f"{case['id']}/ids2")


@pytest.mark.parametrize("case", of_kind("l_mask"))
def test_masks_of_three_encoders(
    case: dict[str, Any], folder: Path, clip: Tokenizer, cut_clip: Tokenizer
) -> None:
    tokenizers = {"clip_l": clip, "clip_g": cut_clip, "t5": load_t5(cache_dir=folder)}
    masks = {"clip_l": "l_mask", "clip_g": "g_mask", "t5": "t5_mask"}
    for name, tokenizer in tokenizers.items():
        length = NUMBERS[f"{case['id']}/{name}"].shape[-1]
        tokens = tokenizer(PROMPTS, length)
        assert_equal(tokens.ids, f"{case['id']}/{name}")
        assert_equal(tokens.mask, f"{case['id']}/{masks[name]}")


def test_clip_mends_mangled_text_before_reading_it(clip: Tokenizer) -> None:
    mangled, meant = "a cafÃ© in spring", "a café in spring"
    ids = clip([mangled, meant], CLIP_LENGTH).ids
    assert torch.equal(ids[0], ids[1])
    unmended = Tokenizer(clip.vocabulary, mends_text=False)([mangled], CLIP_LENGTH).ids
    assert not torch.equal(unmended[0], ids[1])


def test_the_whole_vocabulary_is_there(folder: Path, clip: Tokenizer) -> None:
    vocabulary = json.loads((folder / "openai_clip-vit-large-patch14" / "vocab.json").read_text())
    assert len(vocabulary) == 49_408
    assert clip.vocabulary.eos_token_id == 49_407
    assert len(load_t5(cache_dir=folder).vocabulary) == 32_100
