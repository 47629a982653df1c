"""Runs of other trainers, taken over, train to the end on tiny models."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sfumato.cli.main import main
from tests import tiny

FILES = Path(__file__).parents[2] / "compat" / "other_trainers"


def place(folder: Path, model: Path, out: Path) -> None:
    """Write the files of all trainers into a folder, with these paths in the place of theirs."""
    tiny.pictures(folder / "images" / "1_cat", 2)
    paths = {
        "<DATA>": folder / "images",
        "<IMAGES>": folder / "images" / "1_cat",
        "<MODEL>": model,
        "<OUT>": out,
    }
    for file in FILES.iterdir():
        text = file.read_text("utf-8")
        for name, path in paths.items():
            text = text.replace(name, path.as_posix())
        (folder / file.name).write_text(text, "utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "kohya_ss.json",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("onetrainer.json", "ai_toolkit.yaml", "simpletuner.json")
        ),
    ],
)
def test_an_imported_run_trains_by_the_command_that_is_printed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny.sd(tmp_path / "model"), tmp_path / "out"
    place(tmp_path, model.path, out)
    assert main(["import", str(tmp_path / name)]) == 0
    program, *command = shlex.split(capsys.readouterr().out.splitlines()[-1].removeprefix("run: "))
    assert program == "sfumato"
    more = ["--tokenizer_cache_dir", str(model.tokenizers), "--max_data_loader_n_workers", "0"]
    assert main([*command, *more]) == 0
    (file,) = [found for found in out.rglob("*.safetensors") if found.stem == "mine"]
    trained = load_file(file)
    assert any("lora_up" in key and tensor.count_nonzero() for key, tensor in trained.items())
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())
