"""A DyLoRA is cut into LoRAs of every smaller rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.cli.main import main, script

TENSORS = {
    "lora_unet_a.lora_down.weight": torch.arange(32.0).reshape(8, 4),
    "lora_unet_a.lora_up.weight": torch.arange(24.0).reshape(3, 8),
    "lora_unet_a.alpha": torch.tensor(4.0),
    "lora_unet_c.lora_down.weight": torch.ones(8, 2, 3, 3),
    "lora_unet_c.lora_up.weight": torch.ones(5, 8, 1, 1),
    "lora_unet_c.alpha": torch.tensor(4.0),
}
METADATA = {"ss_network_dim": "8", "ss_network_module": "networks.dylora", "ss_training_comment": "a cat"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "dylora.safetensors"
    write_adapter(path, TENSORS, METADATA)
    return path


def told(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_each_smaller_rank_is_a_file_of_the_first_ranks(source: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(source), "--unit", "2", "--save_to", str(tmp_path / "out" / "x.safetensors")]
    (tmp_path / "out").mkdir()
    assert script("networks/extract_lora_from_dylora", arguments) == 0
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [f"x-000{rank}.safetensors" for rank in (2, 4, 6)]
    for path, rank in zip(paths, (2, 4, 6), strict=True):
        found = load_file(path)
        for layer in ("a", "c"):
            down, up, alpha = (
                f"lora_unet_{layer}.{rest}" for rest in ("lora_down.weight", "lora_up.weight", "alpha")
            )
            assert torch.equal(found[down], TENSORS[down][:rank])
            assert torch.equal(found[up], TENSORS[up][:, :rank])
            assert found[alpha] == 4
        metadata = told(path)
        assert metadata["ss_network_dim"] == str(rank)
        assert metadata["ss_training_comment"] == f"split from DyLoRA, rank 8 to {rank}; a cat"
        assert metadata["sshs_model_hash"] != told(source)["sshs_model_hash"]
    assert len({told(path)["sshs_model_hash"] for path in paths}) == 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unit", "2", "--save_to", "x.safetensors"], "--model is missing"),
        (["--model", "{}", "--save_to", "x.safetensors"], "--unit is missing"),
        (["--model", "{}", "--unit", "8", "--save_to", "x.safetensors"], "has rank 8, which --unit 8 cannot"),
        (["--model", "{}", "--unit", "0", "--save_to", "x.safetensors"], "unit"),
        (["--model", "{}", "--unit", "2", "--save_to", "x.bmp"], "end it in .safetensors"),
        (["--model", "gone.safetensors", "--unit", "1", "--save_to", "x.safetensors"], "gone.safetensors"),
    ],
)
def test_what_cannot_be_cut_is_one_line(
    options: list[str], said: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["extract-dylora", *(option.format(source) for option in options)]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert said in line


def test_what_is_no_dylora_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loha.safetensors"
    save_file({"lora_unet_a.hada_w1_a": torch.ones(4, 2)}, path)
    argv = ["--model", str(path), "--unit", "2", "--save_to", str(tmp_path / "x.safetensors")]
    assert main(["extract-dylora", *argv]) == 2
    assert "it seems to be a LoHa, without lora_down tensors" in capsys.readouterr().err
