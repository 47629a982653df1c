"""The files of tokenizers, in both layouts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from sfumato.models.components import tokenizers
from tests import tiny
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome

CLIP, T5 = "openai_clip-vit-large-patch14", "google_t5-v1_1-xxl"
LETTERS = "abct1,"


@pytest.fixture(scope="module", autouse=True)
def _without_hub() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Return the files of each layout, by its name."""
    path = tmp_path_factory.mktemp("tokenizers")
    tiny._clip_tokenizer(path / CLIP)
    tiny._t5_tokenizer(path / T5)
    return {
        CLIP: {file.name: file.read_bytes() for file in (path / CLIP).iterdir()},
        T5: {file.name: file.read_bytes() for file in (path / T5).iterdir()},
        "older": older_files(),
    }


def older_files() -> dict[str, bytes]:
    """Return a CLIP tokenizer as files of its vocabulary and merges, with settings."""
    tokens = [
        *LETTERS,
        *(f"{letter}</w>" for letter in LETTERS),
        "ca",
        "cat</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    settings: dict[str, Any] = {
        "model_max_length": 77,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
    }
    return {
        "vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}).encode(),
        "merges.txt": b"#version: 0.2\nc a\nca t</w>\n",
        "tokenizer_config.json": json.dumps({**settings, "unk_token": "<|endoftext|>"}).encode(),
        "special_tokens_map.json": json.dumps({"pad_token": "<|endoftext|>"}).encode(),
        "added_tokens.json": b"{}",
    }


@given(data=st.data())
@pytest.mark.parametrize("layout", [CLIP, T5, "older"])
def test_damaged_tokenizers(
    layout: str, sound: dict[str, dict[str, bytes]], data: st.DataObject, tmp_path: Path
) -> None:
    files = sound[layout]
    name = data.draw(st.sampled_from(sorted(files)))
    folder = tmp_path / (T5 if layout == T5 else CLIP)
    folder.mkdir(exist_ok=True)
    for other, content in files.items():
        (folder / other).write_bytes(content)
    broken = (
        damage.damaged_json(json.loads(files[name]))
        if name.endswith(".json")
        else damage.damaged_bytes(files[name])
    )
    (folder / name).write_bytes(data.draw(broken))
    load = tokenizers.load_t5 if layout == T5 else tokenizers.load_clip

    def use() -> object:
        tokenizer = load(cache_dir=tmp_path)
        return tokenizer(["a cat", ""], 16), tokenizer.count(["a cat"])

    outcome(f"tokenizer, {layout}", use)
