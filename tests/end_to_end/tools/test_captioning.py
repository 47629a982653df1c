"""Models of transformers write captions: BLIP and GIT as in sd-scripts, others as they are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sfumato.cli.main import main, script
from sfumato.tools.captioning.sentences import blip_weights
from tests import tiny
from tests.hub.conftest import empty_hub as empty_hub
from tests.hub.conftest import served as served
from tests.hub.stand_in import Hub, Repo
from tests.tools.captioning import tiny_captioners

PUBLISHED = (
    ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
    ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
    ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
    ("vision_model.post_layernorm", "visual_encoder.norm"),
    ("vision_model.encoder.layers", "visual_encoder.blocks"),
    ("self_attn.projection", "attn.proj"),
    ("self_attn", "attn"),
    ("layer_norm", "norm"),
)
"""Names of transformers, and those of BLIP's authors."""


def captions(folder: Path, suffix: str = ".caption") -> list[str]:
    return [path.read_text("utf-8") for path in sorted(folder.glob(f"*{suffix}"))]


def published(name: str) -> str:
    if name.startswith("vision_model"):
        for ours, theirs in PUBLISHED:
            name = name.replace(ours, theirs)
    return name


@pytest.fixture
def images(tmp_path: Path) -> Path:
    tiny.pictures(tmp_path / "images", 3, (48, 32), captions=None)
    return tmp_path / "images"


def test_blip_writes_the_same_in_each_of_its_forms(
    images: Path, tmp_path: Path, empty_hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_captioners.write_blip(tmp_path / "blip")
    files = {path.name: path.read_bytes() for path in (tmp_path / "blip").iterdir()}
    empty_hub.repos[blip_weights.LARGE] = Repo(files)
    weights = {published(name): tensor for name, tensor in model.state_dict().items()}
    assert "visual_encoder.blocks.0.attn.proj.weight" in weights
    torch.save({"model": weights}, tmp_path / "large.pth")
    found = []
    for options in (
        ["--caption_weights", str(tmp_path / "blip")],
        ["--caption_weights", str(tmp_path / "large.pth")],
        [],  # the address from which sd-scripts fetches it
    ):
        assert script("finetune/make_captions", [str(images), *options, "--max_length", "12"]) == 0
        found.append(captions(images))
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3
    assert all(len(text.split()) >= 2 and "[" not in text for text in found[0])
    beams = ["--beam_search", "--num_beams", "2", "--top_p", "0.5", "--batch_size", "2"]
    assert main(["caption", "blip", str(images), "--caption_weights", str(tmp_path / "blip"), *beams]) == 0
    assert "--top_p" in capsys.readouterr().err


def test_git_writes_one_sentence_for_each_image(images: Path, tmp_path: Path) -> None:
    tiny_captioners.write_git(tmp_path / "git")
    arguments = [str(images), "--model_id", str(tmp_path / "git"), "--batch_size", "2", "--max_length", "8"]
    assert script("finetune/make_captions_by_git", [*arguments, "--remove_words"]) == 0
    assert len(captions(images)) == 3
    assert all(0 < len(text.split()) <= 8 for text in captions(images))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of transformers
@pytest.mark.parametrize(
    "write", [tiny_captioners.write_llava, tiny_captioners.write_gemma3, tiny_captioners.write_paligemma]
)
def test_vision_language_models_answer_in_batches(
    write: Callable[[Path], None], images: Path, tmp_path: Path
) -> None:
    write(tmp_path / "model")
    (images / "picture_01.txt").write_text("red cat on the mat", "utf-8")
    found = []
    for size in ("1", "3"):
        arguments = ["caption", "vlm", str(images), "--model", str(tmp_path / "model"), "--batch_size", size]
        told = ["--prompt", "describe it {caption}", "--max_new_tokens", "5", "--trigger_word", "mycat"]
        assert main([*arguments, *told, "--caption_extension", f".{size}"]) == 0
        found.append(captions(images, f".{size}"))
    assert all(text.startswith("mycat, ") and len(text.split()) <= 6 for text in found[0])
    assert "describe" not in found[0][0].split()[1:2]
    assert found[0] == found[1]


def test_code_beside_a_model_is_never_run(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    settings = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config"}}
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", "utf-8")
    assert main(["caption", "vlm", str(images), "--model", str(folder)]) == 2
    assert "cannot be loaded" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert main(["caption", "vlm", str(images), "--model", "no/model", "--offline"]) == 2
    assert "hf download no/model" in capsys.readouterr().err
