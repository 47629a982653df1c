"""Runs as front-ends really send them train to the end, with tiny models in the place of the named ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sfumato.cli.main import script
from sfumato.config.public import to_toml
from tests import tiny

CLIENTS = Path(__file__).parents[1] / "compat" / "clients"
ROOT = Path(__file__).parents[2]
SENT: dict[str, dict[str, Any]] = json.loads((CLIENTS / "runs.json").read_text("utf-8"))
SMALL = {"max_train_steps": 1, "resolution": "64,64", "min_bucket_reso": 64}
"""What a run is given beside tiny models, to be short."""

DATA_SET = """
[[datasets]]
resolution = 64
batch_size = 4
keep_tokens = 1
enable_bucket = true
min_bucket_reso = 64
max_bucket_reso = 1024
bucket_reso_steps = 32
bucket_no_upscale = true

    [[datasets.subsets]]
    image_dir = '{folder}'
    num_repeats = 10
    class_tokens = 'darius kawasaki person'
    caption_extension = '.txt'
"""


@dataclass(frozen=True)
class Place:
    """A front-end's folder, and what stands in for the models that its files name."""

    gui: Path
    models: dict[str, dict[str, str]]

    def prepare(self, name: str, out: Path) -> tuple[list[str], dict[str, str]]:
        """Write the file and prompts of a run as its front-end does; return command line and environment."""
        kind = name.partition("_")[0]
        text = self._placed((CLIENTS / f"{name}.toml").read_text("utf-8"), out)
        # Whatever is named twice would be no TOML.
        for key, value in {**self.models[kind], **SMALL}.items():
            text = re.sub(rf"(?m)^{key} = .*\n", "", text) + to_toml({key: value})
        (out / "sample").mkdir(parents=True)
        (out / "sample" / "prompt.txt").write_text("", "utf-8")
        argv = [self._placed(part, out) for part in SENT[name]["argv"]]
        Path(argv[argv.index("--config_file") + 1]).write_text(text, "utf-8")
        return argv, {"PYTHONPATH": self._placed(SENT[name]["PYTHONPATH"], out)}

    def _placed(self, text: str, out: Path) -> str:
        return text.replace("<OUT>", out.as_posix()).replace("<GUI>", self.gui.as_posix())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    gui = tmp_path_factory.mktemp("gui")
    (gui / "sd-scripts").symlink_to(ROOT / "sd-scripts")
    images = gui / "test" / "img" / "10_darius kawasaki person"
    tiny.pictures(images, 2, (96, 64))
    (gui / "test" / "config").mkdir()
    (gui / "test" / "config" / "dataset.toml").write_text(DATA_SET.format(folder=images), "utf-8")
    models = {"sd": tiny.sd(gui / "sd"), "sdxl": tiny.sdxl(gui / "sdxl"), "flux": tiny.flux(gui / "flux")}
    return Place(gui, {kind: _as_options(model.arguments) for kind, model in models.items()})


def _as_options(arguments: list[str]) -> dict[str, str]:
    return {flag.lstrip("-"): value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}


def _check(out: Path) -> None:
    trained = load_file(out / "testout.safetensors")
    assert trained
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


@pytest.mark.parametrize("name", SENT)
def test_a_run_of_a_front_end_trains_to_the_end(
    name: str, place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv, _ = place.prepare(name, tmp_path / "out")
    at = next(number for number, part in enumerate(argv) if part.endswith(".py"))
    assert script(Path(argv[at]).stem, argv[at + 1 :]) == 0
    _check(tmp_path / "out")
    assert capfd.readouterr().err.count("no such option, ignored") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux_lora", "sdxl_lora_fp16"])
def test_a_front_end_starts_a_run_by_accelerate(name: str, place: Place, tmp_path: Path) -> None:
    (_, *argv), environment = place.prepare(name, tmp_path / "out")
    assert argv.pop(0) == "launch"
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *argv],
        cwd=place.gui,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _check(tmp_path / "out")
    if name.endswith("fp16"):
        assert "--mixed_precision is fp16, which a CPU cannot train in; bf16 is used instead" in done.stderr
        assert "--xformers has no effect here: attention always runs in" in done.stderr
