"""LoRAs at another rank: what their files say, and what is refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.checkpoints.hashes import adapter_hashes
from sfumato.cli.main import main, script


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Return a LoRA of one Linear layer and one convolution, rank 8 and 4, alpha half the rank."""
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "lora_unet_a.lora_down.weight": (8, 30),
        "lora_unet_a.lora_up.weight": (20, 8),
        "lora_unet_b.lora_down.weight": (4, 6, 3, 3),
        "lora_unet_b.lora_up.weight": (10, 4, 1, 1),
    }
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    tensors |= {"lora_unet_a.alpha": torch.tensor(4.0), "lora_unet_b.alpha": torch.tensor(2.0)}
    metadata = {
        "ss_network_dim": "8",
        "ss_network_alpha": "4.0",
        "ss_network_args": json.dumps({"conv_dim": "4", "conv_alpha": "2"}),
        "ss_training_comment": "mine",
        "sshs_model_hash": "0",
        "modelspec.title": "cat",
    }
    save_file(tensors, tmp_path / "in.safetensors", metadata)
    return tmp_path / "in.safetensors"


def resize(lora: Path, options: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    target = lora.with_name("out.safetensors")
    argv = ["--model", str(lora), "--save_to", str(target), *options.split()]
    assert script("networks/resize_lora", argv) == 0
    with safe_open(target, "pt") as file:
        return load_file(target), file.metadata()


def test_a_file_says_which_ranks_it_has_now(lora: Path) -> None:
    tensors, metadata = resize(lora, "--new_rank 4 --new_conv_rank 2 --save_precision bf16")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    hashes = adapter_hashes(tensors, metadata)
    assert metadata == {
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_network_args": '{"conv_dim": "2", "conv_alpha": "1.0"}',
        "ss_training_comment": "dimension is resized from 8 to 4 (conv: 2); mine",
        "modelspec.title": "cat",
        "sshs_model_hash": hashes["sshs_model_hash"],
        "sshs_legacy_hash": metadata["sshs_legacy_hash"],
    }


def test_a_file_says_by_which_rule_ranks_were_chosen(lora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors, metadata = resize(lora, "--new_rank 8 --dynamic_method sv_fro --dynamic_param 0.8 --verbose")
    assert metadata["ss_training_comment"] == "Dynamic resize with sv_fro: 0.8 from 8; mine"
    rank = len(tensors["lora_unet_a.lora_down.weight"])
    assert 2 <= rank < 8
    assert metadata["ss_network_dim"] == str(rank)  # one Linear layer, so there is one rank
    printed = capsys.readouterr().err
    assert f"lora_unet_a: rank 8 -> {rank}, keeps " in printed
    assert "kept of the norm: " in printed


def test_the_singular_values_decide_what_is_kept(lora: Path) -> None:
    before, (after, _) = load_file(lora), resize(lora, "--new_rank 3")
    products = [
        each["lora_unet_a.lora_up.weight"] @ each["lora_unet_a.lora_down.weight"] for each in (before, after)
    ]
    values = torch.linalg.svdvals(products[0])
    difference = (products[0] - products[1]).norm()
    torch.testing.assert_close(difference, values[3:].norm(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_changes_nothing_gets_rank_1(lora: Path) -> None:
    tensors = load_file(lora)
    tensors["lora_unet_a.lora_up.weight"].zero_()
    save_file(tensors, lora)
    after, metadata = resize(lora, "--new_rank 6 --new_conv_rank 4")
    assert after["lora_unet_a.lora_down.weight"].shape == (1, 30)
    assert after["lora_unet_a.lora_up.weight"].abs().max() == 0
    assert metadata["ss_training_comment"].endswith("; ")


def test_pickled_files_are_read_and_written(lora: Path, tmp_path: Path) -> None:
    torch.save(load_file(lora), tmp_path / "in.pt")
    argv = ["resize-lora", "--model", str(tmp_path / "in.pt"), "--save_to", str(tmp_path / "out.pt")]
    assert main(argv) == 0
    assert torch.load(tmp_path / "out.pt")["lora_unet_a.lora_down.weight"].shape == (4, 30)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "--model is not given"),
        ("--model {lora}", "--save_to is not given"),
        ("--model {lora} --save_to out.bmp", "end it in .safetensors"),
        ("--model {lora} --save_to o.pt --dynamic_method sv_fro", "needs --dynamic_param"),
        ("--model {lora} --save_to o.pt --dynamic_param 2", "needs --dynamic_method"),
        ("--model {lora} --save_to o.pt --dynamic_method sv_fro --dynamic_param 2", "it is a share"),
        ("--model {lora} --save_to o.pt --dynamic_method sv_ratio --dynamic_param 0.5", "use 1 or more"),
        ("--model {lora} --save_to o.pt --new_rank 0", "a rank is 1 or more"),
        ("--model {lora} --save_to o.pt --device abacus", "this machine has not"),
        ("--model {other} --save_to o.pt", "holds lora_unet_a.dora_scale; only plain LoRA layers"),
        ("--model {half} --save_to o.pt", "lora_unet_a has alpha, lora_down.weight without lora_up.weight"),
        ("--model {lora} --save_to {lora}", "is read, too, and would be lost; give another name"),
        ("--model {broken} --save_to o.pt", "holds values that are no numbers"),
    ],
)
def test_mistakes_are_one_line(
    options: str,
    complaint: str,
    lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(lora.parent)
    tensors = load_file(lora)
    save_file(tensors | {"lora_unet_a.dora_scale": torch.ones(20, 1)}, "other.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "lora_unet_a.lora_up.weight"}, "half.safetensors")
    tensors["lora_unet_a.lora_up.weight"][0, 0] = torch.nan
    save_file(tensors, "broken.safetensors")
    logging.getLogger("sfumato").handlers.clear()
    named = {"lora": lora, "other": "other.safetensors", "broken": "broken.safetensors"}
    named["half"] = "half.safetensors"
    assert script("networks/resize_lora", options.format(**named).split()) == 2
    error = capsys.readouterr().err.strip()
    assert complaint in error
    assert len(error.splitlines()[-1:]) == 1
    assert not list(lora.parent.glob("o*t.*t"))
