"""Regularisation images are made by each family's base, and training offers to make what is missing."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.cli.main import main
from sfumato.sampling import session
from tests import tiny

DATA = """
[[datasets]]
resolution = 64
  [[datasets.subsets]]
  image_dir = "photos"
  caption_extension = ".txt"
  num_repeats = 3
  [[datasets.subsets]]
  image_dir = "cats"
  class_tokens = "cat"
  is_reg = true
"""
TRAINING = shlex.split(
    "--dataset_config data.toml --max_train_steps 1 --output_dir out --output_name x --network_dim 2 "
    "--learning_rate 1e-4 --max_data_loader_n_workers 0"
)


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "default_device", lambda: torch.device("cpu"))
    tiny.pictures(Path("photos"), 1)
    Path("data.toml").write_text(DATA, encoding="utf-8")


@pytest.mark.parametrize("family", ["sd", "sdxl", "sd3", "flux"])
def test_a_data_set_is_completed_by_the_base(family: str, tmp_path: Path) -> None:
    makers = {"sd": tiny.sd, "sdxl": tiny.sdxl, "sd3": tiny.sd3, "flux": tiny.flux}
    model = makers[family](tmp_path / "model")
    files = model.arguments if isinstance(model, tiny.TinyCheckpoint) else model.generation_arguments
    command = ["generate", family, *files, "--dtype", "fp32", "--steps", "1", "--offload"]
    assert main([*command, "--for_regularisation", "data.toml"]) == 0
    images = [Image.open(path) for path in sorted(Path("cats").glob("*.png"))]
    assert [image.size for image in images] == [(64, 64)] * 3
    assert len({image.tobytes() for image in images}) == 3


def test_training_offers_to_make_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.flux(tmp_path / "model")
    command = ["train", "flux", "lora", *model.arguments, *TRAINING]
    assert main(command) == 2
    assert "or let `sfumato generate --for_regularisation` make them" in capsys.readouterr().err
    tiny.pictures(Path("cats"), 1, captions=None)
    assert main(command) == 0
    offer = "cats (2). The base makes them: `sfumato generate flux --for_regularisation data.toml`"
    assert offer in capsys.readouterr().err
