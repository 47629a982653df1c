"""Trainings on batches that a user's own class makes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sfumato.cli.main import main, script
from sfumato.data.custom import user_set
from tests import tiny

CLASSES = """
import torch

class Images:
    def __init__(self, tokenizer, max_token_length, resolution, debug_dataset):
        self.width, self.height = resolution

    def __len__(self):
        return 4

    def __getitem__(self, index):
        images = torch.rand(2, 3, self.height, self.width) * 2 - 1
        return {"images": images, "captions": [f"a cat, number {index}", "a dog"]}

class Latents(Images):
    def __getitem__(self, index):
        latents = torch.randn(2, 4, self.height // 8, self.width // 8)
        weights = torch.tensor([1.0, 0.5])
        return {"latents": latents, "captions": ["a cat", "a dog"], "loss_weights": weights}

class Grey(Images):
    def __getitem__(self, index):
        return {"images": torch.full((1, 3, self.height, self.width), 128.0), "captions": ["grey"]}
"""

SHARED = shlex.split(
    "--resolution 64 --network_dim 2 --seed 1 --learning_rate 1e-3 --network_train_unet_only "
    "--max_train_steps 6 --output_name lora --save_model_as safetensors"
)
STATES = ["--save_every_n_steps", "3", "--save_state"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = tiny.flux(tmp_path_factory.mktemp("flux"), hidden=32, heads=1, depth=1, depth_single=1)
    return [*model.arguments, "--network_module", "networks.lora_flux"]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = tiny.sd(tmp_path_factory.mktemp("sd"))
    return [*model.arguments, "--network_module", "networks.lora"]


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(user_set.sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(CLASSES)


def train(name: str, model: list[str], kind: str, out: Path, *options: str) -> dict[str, torch.Tensor]:
    data = ["--dataset_class", f"mine.{kind}", "--output_dir", str(out)]
    workers = [] if "--max_data_loader_n_workers" in options else ["--max_data_loader_n_workers", "0"]
    assert script(name, [*model, *SHARED, *data, *workers, *options]) == 0
    return load_file(out / "lora.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_resumed_run_equals_an_uninterrupted_one_whatever_the_workers(
    flux: list[str], tmp_path: Path
) -> None:
    whole = train("flux_train_network", flux, "Images", tmp_path / "whole", *STATES)
    state = ["--resume", str(tmp_path / "whole" / "lora-step00000003-state")]
    resumed = train(
        "flux_train_network",
        flux,
        "Images",
        tmp_path / "resumed",
        *state,
        *("--max_data_loader_n_workers", "2"),
    )
    assert same(whole, resumed)
    assert any(tensor.any() for name, tensor in whole.items() if "lora_up" in name)


def test_latents_train_and_the_file_tells_of_the_class(sd: list[str], tmp_path: Path) -> None:
    whole = train("train_network", sd, "Latents", tmp_path / "whole", *STATES)
    state = ["--resume", str(tmp_path / "whole" / "lora-step00000003-state")]
    assert same(whole, train("train_network", sd, "Latents", tmp_path / "resumed", *state))
    with safe_open(tmp_path / "whole" / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_dataset_class"] == "mine.Latents"
    assert metadata["ss_num_train_images"] == "8"
    assert metadata["ss_num_batches_per_epoch"] == "4"


def test_memory_is_counted_as_for_images_of_that_size(
    flux: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.pictures(tmp_path / "data" / "1_cat", 2)
    folder = ["--train_data_dir", "data", "--train_batch_size", "2", "--caption_extension", ".txt"]

    def counted(*data: str) -> dict[str, dict[str, int]]:
        options = [*flux, *SHARED, *data, "--output_dir", str(tmp_path), "--json"]
        assert main(["plan", "flux", "lora", *options]) == 0
        return json.loads(capfd.readouterr().out)["training"]["items"]

    assert counted("--dataset_class", "mine.Images") == counted(*folder)


@pytest.mark.parametrize(
    ("kind", "options", "complaint"),
    [
        ("Grey", "", "--dataset_class mine.Grey, batch 0: images is between 128 and 128; values must lie"),
        ("Nothing", "", "--dataset_class is mine.Nothing; mine ("),
        (
            "Images",
            "--cache_latents",
            "--dataset_class mine.Images excludes --cache_latents: what a class",
        ),
        (
            "Images",
            "--dataset_config x.toml",
            "--dataset_class mine.Images excludes --dataset_config x.toml",
        ),
        ("Images", "--debug_dataset", "--dataset_class mine.Images excludes --debug_dataset: the report"),
        ("Images", "--flip_aug --strict", "--flip_aug has no effect with --dataset_class, which makes"),
    ],
)
def test_what_cannot_work_is_one_line_before_any_weight_is_loaded(
    kind: str, options: str, complaint: str, sd: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = ["--dataset_class", f"mine.{kind}", "--output_dir", str(tmp_path)]
    assert script("train_network", [*sd, *SHARED, *data, *shlex.split(options)]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1, errors
    assert complaint in errors[0]
