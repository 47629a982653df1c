"""Files of every program act in each command as our own: merged, drawn with, trained on, resized ..."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from tests import tiny
from tests.adapters.files.dialects import writers
from tests.adapters.files.dialects.writers import DIALECTS, RANK, Layer, Model
from tests.runs import others_slow

ROWS = [(name, family) for name, dialect in DIALECTS.items() if name != "ours" for family in dialect.families]
OFTEN = [("onetrainer legacy", "flux")]
"""What normal runs try."""
MERGING = {"sd": "merge_lora", "sdxl": "sdxl_merge_lora", "flux": "flux_merge_lora"}
TRAINERS = {"sd": "train_network", "sdxl": "sdxl_train_network", "flux": "flux_train_network"}
SHORT = "--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 1 --seed 5"
IMAGE = "--width 64 --height 64 --steps 1 --cfg_scale 1 --seed 5 --dtype fp32 --prompt cat"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return writers.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_cat", 1, (64, 64))
    return folder


def files(name: str, layers: list[Layer], folder: Path) -> tuple[Path, Path]:
    """Write a program's file, and ours with the same changes."""
    dialect = DIALECTS[name]
    has = [layer for layer in layers if dialect.has(layer)]
    theirs, ours = folder / "theirs.safetensors", folder / "ours.safetensors"
    save_file(dialect.write(has), theirs, dialect.metadata)
    save_file(writers.own(has, dialect.alpha), ours)
    return theirs, ours


def merged(model: Model, adapter: Path, folder: Path) -> list[dict[str, torch.Tensor]]:
    folder.mkdir()
    argv, outputs = ["--models", str(adapter), "--ratios", "0.7"], []
    for option, path in model.paths.items():
        outputs.append(folder / path.name)
        save = "save_to" if option in ("sd_model", "flux_model") else f"{option}_save_to"
        argv += [f"--{option}", str(path), f"--{save}", str(outputs[-1])]
    assert script(f"networks/{MERGING[model.family]}", argv) == 0
    return [load_file(path) for path in outputs]


def drawn(model: Model, adapter: Path, folder: Path) -> np.ndarray:
    argv = [
        *model.generation,
        *shlex.split(IMAGE),
        "--output_dir",
        str(folder),
        "--lora_weights",
        str(adapter),
    ]
    assert main(["generate", model.family, *argv]) == 0
    with Image.open(next(folder.glob("*.png"))) as image:
        return np.asarray(image).astype(int)


def trained(model: Model, adapter: Path, pictures: Path, folder: Path) -> dict[str, torch.Tensor]:
    places = ["--train_data_dir", str(pictures), "--output_dir", str(folder), "--output_name", "x"]
    start = ["--network_weights", str(adapter), "--dim_from_weights", "--learning_rate", "1e-9"]
    extra = ["--network_args", "train_t5xxl=True"] if model.family == "flux" else []
    argv = [*model.training, *places, *shlex.split(SHORT), *start, *extra]
    module = "networks.lora_flux" if model.family == "flux" else "networks.lora"
    assert script(TRAINERS[model.family], [*argv, "--network_module", module]) == 0
    return load_file(folder / "x.safetensors")


def products(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(key.partition(".")[0] for key in tensors)
    found = {}
    for name in names:
        up, down = (tensors[f"{name}.lora_{half}.weight"].float().flatten(1) for half in ("up", "down"))
        found[name] = up @ down * (float(tensors[f"{name}.alpha"]) / len(down))
    return found


def require_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        torch.testing.assert_close(tensor, second[key], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("name", "family"), others_slow(ROWS, OFTEN))
def test_a_file_of_any_program_acts_as_ours_in_every_command(
    name: str, family: str, models: dict[str, Model], pictures: Path, tmp_path: Path
) -> None:
    model = models[family]
    theirs, ours = files(name, list(model.layers), tmp_path)
    for first, second in zip(
        merged(model, theirs, tmp_path / "a"), merged(model, ours, tmp_path / "b"), strict=True
    ):
        require_close(first, second)
    assert np.abs(drawn(model, theirs, tmp_path / "c") - drawn(model, ours, tmp_path / "d")).max() <= 1
    expected = products(load_file(ours))
    require_close(products(trained(model, theirs, pictures, tmp_path / "e")), expected)
    resized = tmp_path / "resized.safetensors"
    argv = ["--model", str(theirs), "--save_to", str(resized), "--new_rank", str(4 * RANK)]
    assert script("networks/resize_lora", argv) == 0
    require_close(products(load_file(resized)), expected)
    assert main(["check-lora", str(theirs)]) == 0
    converted = tmp_path / "converted.safetensors"
    exchange = ["--src_path", str(theirs), "--dst_path", str(converted)]
    assert script("networks/convert_flux_lora", exchange) == (0 if family == "flux" else 2)
    if family == "flux":
        require_close(products(load_file(converted)), expected)


def test_a_folder_of_peft_is_merged_by_its_settings(models: dict[str, Model], tmp_path: Path) -> None:
    model, folder = models["sd"], tmp_path / "adapter"
    folder.mkdir()
    theirs, ours = files("peft raw", list(model.layers), tmp_path)
    theirs.rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 8, "r": 2}')
    tensors = load_file(ours)
    save_file({key: torch.tensor(8.0) if key.endswith(".alpha") else tensors[key] for key in tensors}, ours)
    for first, second in zip(
        merged(model, folder, tmp_path / "a"), merged(model, ours, tmp_path / "b"), strict=True
    ):
        require_close(first, second)
