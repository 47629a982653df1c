"""A LoRA is asked for the tokens that it changes, and names them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from sfumato.models.components.tokenizers import load_clip
from sfumato.models.registry.whole_models import open_base
from tests import tiny
from tests.tiny import TinyCheckpoint

LAYER = "lora_te_text_model_encoder_layers_0_self_attn_v_proj"
TOKENIZER = "openai_clip-vit-large-patch14"
PLANTED = {"sks</w>": "sks", "hou": "hou..."}
"""Tokens that a LoRA is made to react to, and how they are shown."""


@pytest.fixture(scope="module", params=[False, True], ids=["v1", "v2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyCheckpoint:
    """Write a model whose words have nothing in their first channel, but for two of them."""
    model = tiny.sd(tmp_path_factory.mktemp("model"), v2=request.param)
    weights = load_file(model.path)
    for name, value in weights.items():
        if "position_embedding" in name or "positional" in name or "token_embedding" in name:
            value[:, 0] = 0
            if "token" in name:
                value[[token_of(model, piece) for piece in PLANTED], 0] = 8
    save_file(weights, model.path)
    return model


def token_of(model: TinyCheckpoint, piece: str) -> int:
    tokenizer = load_clip(TOKENIZER, bundled_dir=model.tokenizers)
    return tokenizer.vocabulary.get_vocab()[piece]


def lora(path: Path, strength: float = 1.0, layer: str = LAYER) -> Path:
    """Write a LoRA of rank 1 that adds something where its layer is given the first channel."""
    up = torch.randn(64, 1, generator=torch.Generator().manual_seed(3)) * strength
    halves = {"lora_down.weight": torch.eye(1, 64), "lora_up.weight": up, "alpha": torch.tensor(1.0)}
    save_file({f"{layer}.{name}": value for name, value in halves.items()}, path)
    return path


def ask(
    model: TinyCheckpoint, path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> tuple[str, list[tuple[int, float, str]]]:
    """Return the report's first line, and its rows: token, distance and text."""
    arguments = ["--sd_model", str(model.path), "--model", str(path), *options]
    assert script("networks/lora_interrogator", arguments) == 0
    head, _, *lines = capsys.readouterr().out.splitlines()
    rows = [line.split(maxsplit=2) for line in lines]
    return head, [(int(token), float(distance), text) for token, distance, text in rows]


def test_the_tokens_that_a_lora_reacts_to_are_named_first(
    model: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lora(tmp_path / "lora.safetensors")
    head, rows = ask(model, path, capsys, *model.flags)
    num_tokens = len(load_clip(TOKENIZER, bundled_dir=model.tokenizers).vocabulary) - 2  # without the frame
    assert head.startswith(f"{path} moves {num_tokens} tokens by 0.")
    assert {row[0]: row[2] for row in rows[:2]} == {token_of(model, p): text for p, text in PLANTED.items()}
    assert all(text and text.isprintable() and "\ufffd" not in text for _, _, text in rows)
    assert len(rows) == 100
    measured = [distance for _, distance, _ in rows]
    assert measured == sorted(measured, reverse=True)
    assert measured[1] > 2 * measured[2]


def test_batches_do_not_matter_but_the_layer_that_is_listened_to_does(
    model: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lora(tmp_path / "lora.safetensors")
    _, rows = ask(model, path, capsys)
    arguments = [
        "interrogate-lora",
        "--sd_model",
        str(model.path),
        "--model",
        str(path),
        "--batch_size",
        "99",
    ]
    assert main(arguments) == 0
    token, distance, *_ = capsys.readouterr().out.splitlines()[2].split()
    assert int(token) == rows[0][0]
    assert float(distance) == pytest.approx(rows[0][1], abs=2e-5)
    assert ask(model, path, capsys, "--clip_skip", "1")[1] == rows
    assert abs(ask(model, path, capsys, "--clip_skip", "2")[1][0][1] - rows[0][1]) > 1e-3


def test_a_distance_is_the_root_mean_square_over_all_positions_and_channels(
    model: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lora(tmp_path / "lora.safetensors")
    distance = next(row[1] for row in ask(model, path, capsys)[1] if row[2] == "sks")
    family = open_base(model.path, "--sd_model")
    (part,) = family.text_outputs
    encoder = family.load(part, torch.float32, torch.device("cpu"))
    ids = family.tokenize(["sks"])
    assert ids[part][0, 0, 1] == token_of(model, "sks</w>")
    before = family.encode_text({part: encoder}, ids)["hidden_state"]
    value = next(m for name, m in encoder.named_modules() if name.endswith("layers.0.self_attn.v_proj"))
    value.get_parameter("weight")[:, :1] += load_file(path)[f"{LAYER}.lora_up.weight"]
    change = family.encode_text({part: encoder}, ids)["hidden_state"] - before
    assert change.shape == (1, 77, 64)
    assert distance == pytest.approx(float(change.square().mean().sqrt()), abs=2e-5)


def test_a_lora_of_zeros_moves_nothing(
    model: TinyCheckpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, rows = ask(model, lora(tmp_path / "lora.safetensors", strength=0.0), capsys)
    assert "by 0.00000 on average" in head
    assert {distance for _, distance, _ in rows} == {0.0}


def test_what_cannot_be_asked_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, sdxl = tiny.sd(tmp_path / "sd"), tiny.sdxl(tmp_path / "sdxl")
    text = lora(tmp_path / "text.safetensors")
    unet = lora(tmp_path / "unet.safetensors", layer="lora_unet_x")
    for options, complaint in {
        (): "--sd_model is missing; give --sd_model FILE --model FILE",
        ("--sd_model", str(model.path)): "--model is missing",
        ("--sd_model", str(model.path), "--model", str(unet)): "changes no layer of the text encoder",
        ("--sd_model", str(model.path), "--model", str(tmp_path / "gone.safetensors")): "does not exist",
        ("--sd_model", str(model.path), "--model", str(text), "--v2"): "which is Stable Diffusion 1",
        ("--sd_model", str(sdxl.path), "--model", str(text)): "which is another model",
        ("--sd_model", str(model.path), "--model", str(text), "--clip_skip", "3"): "has 2 layers",
        ("--batch_size", "0"): "--batch_size is 0; use 1 or more",
    }.items():
        assert main(["interrogate-lora", *options]) == 2
        assert complaint in capsys.readouterr().err
