"""Prompts of image generation give the tokens and text states that gen_img gives, with its way of windows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.words.extended_embedding import extend, table_of
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.stable_diffusion.prompt_windows import read_prompts
from sfumato.models.components.tokenizers import Tokenizer, load_clip
from sfumato.models.interface.tokenizers import Word
from sfumato.sampling.encoding import with_mean
from sfumato.sampling.request import sub_prompts
from tests.golden.clip_models import clip_encoder
from tests.golden.derived import arrays, assert_recorded, error, inputs, settings
from tests.vocabularies import write_clip

FIXTURE = settings("k_gen_text")
NUMBERS = arrays("k_gen_text")
PARTS = {"sd": ["sd"], "sd2": ["sd2"], "sdxl": ["te1", "te2"]}
CASES = [case for case in FIXTURE["cases"] if case["id"] != "sd_edge"]
"""For the other see `test_a_part_without_words_is_a_window`."""


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("vocabularies")
    write_clip(folder / "clip")
    clip_l, openclip = (load_clip("clip", cache_dir=folder, pad_token=pad) for pad in (None, "!"))
    return {"sd": clip_l, "te1": clip_l, "sd2": openclip, "te2": openclip}


@pytest.fixture(scope="module")
def encoders() -> dict[str, nn.Module]:
    return {name: clip_encoder(FIXTURE, model) for name, model in FIXTURE["models"].items()}


def words(case: dict[str, Any], tokenizer: Tokenizer) -> clip.Words:
    """Return the tokens of a case's prompts, part by part, then of its negative prompts."""
    parts = [part for prompt in case["prompts"] for part in sub_prompts(prompt)]
    texts = [*parts, *(case["negative"] or [])]
    return read_prompts(tokenizer, texts, case["max_embeddings_multiples"])


def taught(
    case: dict[str, Any], place: int, tokenizer: Tokenizer, encoder: nn.Module
) -> tuple[Tokenizer, nn.Module]:
    """Return a tokenizer and a text encoder with the new word of a case, if it has one."""
    if "embedding" not in case:
        return tokenizer, encoder
    told, encoder = case["embedding"], copy.deepcopy(encoder)
    width = table_of(encoder).weight.shape[1]
    extend(encoder, tokenizer.size, 0.2 * inputs(f"kgt.ti{place}", (told["vectors"], width)))
    return tokenizer.with_words([Word(told["token"], told["vectors"])]), encoder


def row(windows: Tensor) -> Tensor:
    """Return ids (B, 75 n + 2) of windows (B, n, 77), as they are recorded."""
    return torch.cat([windows[:, 0, :1], windows[:, :, 1:-1].flatten(1), windows[:, -1, -1:]], dim=1)


def assert_ids(found: Tensor, recorded: Tensor, padding: int) -> None:
    """Compare rows; later windows without words begin with an end here, which is not recorded."""
    _, places = torch.nonzero(found != recorded, as_tuple=True)
    assert torch.all((places > 1) & (places % 75 == 1))
    assert torch.all(recorded[found != recorded] == padding)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_tokens_and_states_agree(
    case: dict[str, Any], tokenizers: dict[str, Tokenizer], encoders: dict[str, nn.Module]
) -> None:
    stem = f"{case['id']}/right" if case.get("judge") == "right" else case["id"]
    states, pooled, number = [], None, 0
    for place, name in enumerate(PARTS[case["model"]]):
        tokenizer, encoder = taught(case, place, tokenizers[name], encoders[name])
        read = words(case, tokenizer)
        recorded = f"{stem}/ids{place}" if len(PARTS[case["model"]]) > 1 else f"{stem}/ids"
        number = len(NUMBERS[recorded])
        assert_ids(row(read.ids)[:number], NUMBERS[recorded], tokenizers[name].padding)
        options = {
            "layer": case["clip_skip"],
            "has_norm": case["model"] != "sdxl",
            "keeps_frames": not case["no_boseos_middle"],
        }
        state, out = clip.encode(encoder, read, **options)
        if case["emb_normalize_mode"] != "none":
            plain = clip.encode(encoder, clip.Words(read.ids), **options)[0]
            state = with_mean(state, plain, is_absolute=case["emb_normalize_mode"] == "abs")
        states.append(state)
        if name == "te2":
            pooled = out.text_embeds.unflatten(0, read.ids.shape[:2])[:, 0]
    both = torch.cat(states, dim=-1)
    assert_recorded(both[:number], NUMBERS, f"{stem}/emb", 2e-5)
    if case["negative"]:
        assert_recorded(both[number:], NUMBERS, f"{stem}/neg", 2e-5)
    if pooled is not None:
        assert error(pooled[:number], NUMBERS[f"{stem}/pooled"]) < 2e-5


def test_a_part_without_words_is_a_window(tokenizers: dict[str, Tokenizer]) -> None:
    read = read_prompts(tokenizers["sd"], [" BREAK cat"], 2)
    end = tokenizers["sd"].padding
    assert read.ids.shape == (1, 2, 77)
    assert read.ids[0, 0].tolist() == [49406, *[end] * 76]
    assert read.ids[0, 1, :3].tolist() == [49406, 2368, end]
