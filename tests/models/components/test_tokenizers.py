"""Tokenizers are found without network where possible, and say what is missing where not."""

import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from sfumato.errors import UserError
from sfumato.models.components import tokenizers
from tests import tiny

CLIP_FOLDER = "openai_clip-vit-large-patch14"
T5_FOLDER = "google_t5-v1_1-xxl"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    tiny._clip_tokenizer(folder / CLIP_FOLDER)
    tiny._t5_tokenizer(folder / T5_FOLDER)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache of the hub, which cannot be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def kept(cache: Path, name: str, source: Path) -> None:
    """Put a model into a cache of the hub, as its client does."""
    folder = cache / f"models--{name.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / "abc")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")


def test_cached_tokenizers_load_without_the_hub(cache: Path) -> None:
    ids = tokenizers.load_clip(cache_dir=cache)(["a cat"], 77).ids
    assert ids.shape == (1, 77)
    tokens = tokenizers.load_t5(cache_dir=cache)(["a cat", ""], 16)
    assert tokens.mask.sum(1).tolist() == [tokens.ids[0].count_nonzero().item(), 1]


def test_tokenizers_that_are_given_win_over_those_that_the_model_brings(cache: Path, tmp_path: Path) -> None:
    (tmp_path / CLIP_FOLDER).mkdir()
    (tmp_path / CLIP_FOLDER / "tokenizer.json").write_text("not read")
    tokenizer = tokenizers.load_clip(cache_dir=cache, bundled_dir=tmp_path)
    assert tokenizer(["cat"], 77).mask.sum() == 3
    assert tokenizers.load_clip(cache_dir=tmp_path / "empty", bundled_dir=cache)(["cat"], 77).mask.sum() == 3


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize(("load", "folder"), [("load_clip", CLIP_FOLDER), ("load_t5", T5_FOLDER)])
def test_a_missing_tokenizer_names_option_folder_and_files(
    load: str, folder: str, given: bool, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        getattr(tokenizers, load)(cache_dir=tmp_path if given else None)
    message = str(caught.value)
    assert "--tokenizer_cache_dir" in message
    assert folder in message
    assert "tokenizer.json" in message
    assert "\n" not in message
    assert (str(tmp_path) in message) == given


def test_an_empty_folder_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / CLIP_FOLDER).mkdir()
    (tmp_path / CLIP_FOLDER / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"vocab.json and merges.txt"):
        tokenizers.load_clip(cache_dir=tmp_path)


def test_broken_files_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / T5_FOLDER).mkdir()
    (tmp_path / T5_FOLDER / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(UserError) as caught:
        tokenizers.load_t5(cache_dir=tmp_path)
    assert str(tmp_path / T5_FOLDER) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_package_that_a_bare_vocabulary_needs_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / T5_FOLDER).mkdir()
    (tmp_path / T5_FOLDER / "spiece.model").write_bytes(b"not read")
    monkeypatch.setattr(tokenizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece"):
        tokenizers.load_t5(cache_dir=tmp_path)


def test_what_comes_from_the_hub_is_kept(cache: Path, tmp_path: Path, own_cache: Path) -> None:
    kept(own_cache, tokenizers.CLIP_L, cache / CLIP_FOLDER)
    first = tokenizers.load_clip(cache_dir=tmp_path)(["a red dog"], 77).ids
    assert (tmp_path / CLIP_FOLDER / "tokenizer.json").is_file()
    shutil.rmtree(own_cache)
    second = tokenizers.load_clip(cache_dir=tmp_path)(["a red dog"], 77).ids
    assert torch.equal(first, second)


def test_the_hubs_own_cache_is_enough(cache: Path, own_cache: Path) -> None:
    kept(own_cache, tokenizers.T5_XXL, cache / T5_FOLDER)
    assert tokenizers.load_t5()(["blue sky"], 8).ids.shape == (1, 8)


def test_padding_is_a_choice(cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache / CLIP_FOLDER, tmp_path / CLIP_FOLDER)
    ended = tokenizers.load_clip(cache_dir=tmp_path)
    marked = tokenizers.load_clip(cache_dir=tmp_path, pad_token="!")
    assert ended(["cat"], 77).ids[0, -1] == ended.vocabulary.eos_token_id
    assert marked(["cat"], 77).ids[0, -1] == marked.vocabulary.convert_tokens_to_ids("!")


def test_windows_hold_everything_that_one_input_cannot(cache: Path) -> None:
    tokenizer = tokenizers.load_clip(cache_dir=cache)
    text = " ".join(["cat"] * 100)
    windows = tokenizer.windows([text, "cat"], 3)
    start, end = tokenizer.vocabulary.bos_token_id, tokenizer.vocabulary.eos_token_id
    assert windows.shape == (2, 3, 77)
    assert windows[:, :, 0].unique().tolist() == [start]
    real = (windows != start) & (windows != end)
    assert real.sum((1, 2)).tolist() == [100, 1]
    assert real.sum(2)[0].tolist() == [75, 25, 0]
