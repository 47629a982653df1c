"""Whole runs on data that is not a plain folder: metadata files, and validation images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sfumato.caching import store
from sfumato.cli.main import script
from sfumato.data.sources import index
from tests import tiny
from tests.runs import figures

SHORT = """
--resolution 32 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 4 --seed 5
--learning_rate 1e-2 --network_module networks.lora_flux --network_dim 2 --network_train_unet_only
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tiny.pictures(tmp_path / "data" / "1_sks cat", 4, (32, 32))[0].parents[1]


def train(model: tiny.TinyFlux, out: Path, *options: str, code: int = 0) -> None:
    places = ["--output_dir", str(out), "--output_name", "lora"]
    assert script("flux_train_network", [*model.arguments, *places, *SHORT.split(), *options]) == code


def metadata(out: Path) -> dict[str, str]:
    with safe_open(out / "lora.safetensors", "pt") as file:
        return file.metadata()


def lines(out: Path) -> list[dict[str, float]]:
    return figures(out / "lora.metrics.jsonl")


def test_a_metadata_file_trains_as_the_same_captions_in_files_do(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    folder, file = images / "1_sks cat", tmp_path / "captions.json"
    captions = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    entries = {
        stem: {"caption": text.split(",")[0], "tags": text.split(",", 1)[1]}
        for stem, text in captions.items()
    }
    file.write_text(json.dumps(dict(sorted(entries.items()))))
    cached = ["--cache_latents", "--cache_text_encoder_outputs"]
    train(model, tmp_path / "files", "--train_data_dir", str(images), *cached)
    train(model, tmp_path / "json", "--train_data_dir", str(folder), "--in_json", str(file), *cached)
    first, second = (load_file(tmp_path / name / "lora.safetensors") for name in ("files", "json"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert json.loads(metadata(tmp_path / "json")["ss_dataset_dirs"]) == {
        "captions.json": {"n_repeats": 1, "img_count": 4}
    }


def test_measuring_the_loss_of_validation_images_changes_nothing_that_is_trained(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    split = ["--train_data_dir", str(images), "--validation_split", "0.5", "--validation_seed", "1"]
    rarely, often = ["--validate_every_n_epochs", "9"], ["--validate_every_n_steps", "1"]
    train(model, tmp_path / "plain", *split, *rarely, "--network_dropout", "0.5")
    train(model, tmp_path / "measured", *split, *often, "--network_dropout", "0.5")
    first, second = (load_file(tmp_path / name / "lora.safetensors") for name in ("plain", "measured"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert [line["loss"] for line in lines(tmp_path / "plain")] == [
        line["loss"] for line in lines(tmp_path / "measured") if "loss" in line
    ]
    assert metadata(tmp_path / "measured")["ss_num_validation_images"] == "2"
    assert metadata(tmp_path / "measured")["ss_num_train_images"] == "2"


@pytest.mark.parametrize(
    "cache", [[], ["--cache_latents", "--cache_text_encoder_outputs"]], ids=["live", "cached"]
)
def test_figures_compare_from_one_measurement_to_the_next(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, cache: list[str]
) -> None:
    options = [
        "--train_data_dir",
        str(images),
        "--validation_split",
        "0.5",
        "--validate_every_n_steps",
        "1",
    ]
    train(model, tmp_path, *options, *cache, "--learning_rate", "1e-12")
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    measured = [line["loss/validation/step_average"] for line in found[1::2]]
    assert measured == pytest.approx([measured[0]] * 4, rel=1e-6)
    trained = [line["loss"] for line in found[::2]]
    assert max(trained) - min(trained) > 1e-3
    average = sum(trained[2:]) / 2  # an epoch has two steps
    assert found[-1]["loss/validation/step_divergence"] == pytest.approx(measured[-1] - average, rel=1e-6)


def test_an_images_file_that_is_gone_does_not_stop_a_metadata_file(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = images / "1_sks cat", tmp_path / "captions.json"
    file.write_text(json.dumps({str(path): {"caption": "x"} for path in sorted(folder.glob("*.png"))}))
    (folder / "picture_03.png").unlink()
    train(model, tmp_path / "out", "--in_json", str(file), "--max_train_steps", "1")
    assert "1 of 4 images in" in capfd.readouterr().err
    shutil.rmtree(folder)
    train(model, tmp_path / "none", "--in_json", str(file), code=2)
    assert "no images to train on in" in capfd.readouterr().err


def test_images_of_which_only_latents_are_left_train_as_they_did(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, folder, file = tiny.sdxl(tmp_path / "model"), tmp_path / "data", tmp_path / "m.json"
    tiny.pictures(folder, 3, (90, 70), captions=None)
    entries = {f"picture_{n:02d}": {"caption": f"cat {n}", "train_resolution": [80, 64]} for n in range(3)}
    file.write_text(json.dumps(entries))
    data = ["--train_data_dir", str(folder), "--in_json", str(file)]
    argv = [*model.arguments, *SHORT.replace("lora_flux", "lora").split(), *data, "--output_name", "lora"]
    cached = [*argv, "--cache_latents_to_disk", "--output_dir"]
    assert script("sdxl_train_network", [*cached, str(tmp_path / "before")]) == 0
    first, *others = sorted(folder.glob("*.png"))
    first.unlink()  # what training wrote itself stands in for it
    for image in others:
        (own,) = folder.glob(f"{image.stem}_*.npz")
        arrays = {name: array for name, array in np.load(own).items() if name != store.RECORD}
        assert arrays.keys() == {"latents", "original_size", "crop_ltrb"}
        np.savez(folder / f"{image.stem}.npz", **arrays)
        own.unlink()
        image.unlink()
    (folder / index.NAME).unlink()
    capfd.readouterr()
    assert script("sdxl_train_network", [*cached, str(tmp_path / "after")]) == 0
    assert "2 latent caches without a record" in capfd.readouterr().err
    first, second = (load_file(tmp_path / name / "lora.safetensors") for name in ("before", "after"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert script("sdxl_train_network", [*argv, "--output_dir", str(tmp_path / "none")]) == 2
    text = capfd.readouterr().err
    assert "3 of 3 images in" in text
    assert "latents of some are: --cache_latents_to_disk may train from them" in text


def test_captions_that_vary_are_cached_in_memory_as_live_encoders_see_them(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    for file in images.rglob("*.txt"):
        file.write_text("a {red|blue} cat\na dog")
    varied = ["--train_data_dir", str(images), "--enable_wildcard", "--caption_dropout_rate", "0.4"]
    train(model, tmp_path / "live", *varied)
    train(model, tmp_path / "cached", *varied, "--cache_text_encoder_outputs")
    first, second = (load_file(tmp_path / name / "lora.safetensors") for name in ("live", "cached"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    train(model, tmp_path / "disk", *varied, "--cache_text_encoder_outputs_to_disk", code=2)
