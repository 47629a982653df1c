"""FLUX's prompts: which encoder makes what, and what hiding the padding changes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato.models.components import text_encoders
from sfumato.models.families.flux import text
from tests import tiny

CAPTIONS = ["a cat", "a red dog, blue sky, photo", ""]
LENGTH = 24
CPU = torch.device("cpu")

Setting = tuple[dict[str, nn.Module], dict[str, Tensor]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def setting(files: tiny.TinyFlux) -> Setting:
    encoders: dict[str, nn.Module] = {
        "clip_l": text_encoders.load_clip(files.clip_l, torch.float32, CPU),
        "t5xxl": text_encoders.load_t5(files.t5xxl, torch.float32, CPU),
    }
    return encoders, text.tokenize(text.tokenizers(files.tokenizers), CAPTIONS, LENGTH)


def test_tokens_have_the_encoders_lengths(setting: Setting) -> None:
    shapes = {name: tuple(ids.shape) for name, ids in setting[1].items()}
    assert shapes == {"clip_l": (3, 77), "t5xxl": (3, LENGTH), "t5xxl_mask": (3, LENGTH)}


@torch.no_grad()
def test_each_encoder_makes_the_outputs_that_are_listed_for_it(setting: Setting) -> None:
    encoders, tokens = setting
    for name, names in text.OUTPUTS.items():
        outputs = text.encode({name: encoders[name]}, tokens, apply_mask=False)
        assert tuple(outputs) == names
    both = text.encode(encoders, tokens, apply_mask=False)
    assert both["l_pooled"].shape == (3, tiny.CLIP_WIDTH)
    assert both["t5_out"].shape == (3, LENGTH, tiny.T5_WIDTH)


@torch.no_grad()
def test_a_masked_caption_does_not_depend_on_its_padding(setting: Setting, files: tiny.TinyFlux) -> None:
    encoders, tokens = setting
    longer = text.tokenize(text.tokenizers(files.tokenizers), CAPTIONS, 2 * LENGTH)
    real = tokens["t5xxl_mask"].bool()
    for apply_mask in (True, False):
        short = text.encode(encoders, tokens, apply_mask)["t5_out"]
        long = text.encode(encoders, longer, apply_mask)["t5_out"][:, :LENGTH]
        assert torch.allclose(short[real], long[real], atol=1e-5) == apply_mask


@torch.no_grad()
def test_the_pooled_vector_is_read_at_the_first_end_token(setting: Setting) -> None:
    encoders, tokens = setting
    ids = tokens["clip_l"]
    states = encoders["clip_l"](input_ids=ids).last_hidden_state
    pooled = text.encode(encoders, tokens, apply_mask=False)["l_pooled"]
    ends = (ids == ids.max()).int().argmax(1)
    assert torch.equal(pooled, states[torch.arange(3), ends])


def test_gradients_reach_the_encoders_when_they_are_trained(setting: Setting) -> None:
    encoders, tokens = setting
    layer = encoders["clip_l"].get_submodule("encoder.layers.0.mlp.fc1")
    layer.requires_grad_(True)
    try:
        text.encode({"clip_l": encoders["clip_l"]}, tokens, apply_mask=False)["l_pooled"].sum().backward()
        assert next(layer.parameters()).grad is not None
    finally:
        layer.requires_grad_(False)


@torch.no_grad()
def test_encoders_stored_in_eight_bits_give_nearly_the_same(setting: Setting, files: tiny.TinyFlux) -> None:
    encoders, tokens = setting
    exact = text.encode(encoders, tokens, apply_mask=True)
    stored: dict[str, nn.Module] = {
        "clip_l": text_encoders.load_clip(files.clip_l, torch.float8_e4m3fn, CPU),
        "t5xxl": text_encoders.load_t5(files.t5xxl, torch.float8_e4m3fn, CPU),
    }
    rounded = text.encode(stored, tokens, apply_mask=True)
    for name in ("l_pooled", "t5_out"):
        similarity = torch.cosine_similarity(exact[name].flatten(), rounded[name].float().flatten(), dim=0)
        assert similarity > 0.98
        assert not torch.equal(exact[name], rounded[name].float())


def test_missing_tokenizers_stop_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.errors import UserError

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match="--tokenizer_cache_dir"):
        text.tokenizers(tmp_path)["clip_l"]
