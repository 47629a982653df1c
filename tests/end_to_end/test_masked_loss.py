"""Whole trainings with masks: what a mask hides has no part in what is learned."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sfumato.cli.main import script
from sfumato.diffusion import losses
from tests import tiny
from tests.runs import others_slow

SIDE = 64
SHORT = shlex.split("--resolution 64 --caption_extension .txt --network_dim 2 --seed 1 --learning_rate 1e-2")
CACHED = ["--cache_latents", "--cache_latents_to_disk"]
SCRIPTS = ("flux_train_network", "train_network", "sdxl_train_network")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The options that name the files of each script's tiny model."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "flux_train_network": tiny.flux(folder / "flux").arguments,
        "train_network": tiny.sd(folder / "sd").arguments,
        "sdxl_train_network": tiny.sdxl(folder / "sdxl").arguments,
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three images that are transparent on the left, and a folder of masks that hide the left."""
    folder = tmp_path / "data" / "1_cat"
    tiny.pictures(folder, 3, (SIDE, SIDE))
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in folder.glob("*.png"):
        hidden = Image.new("L", (SIDE, SIDE), 255)
        hidden.paste(0, (0, 0, SIDE // 2, SIDE))
        hidden.save(masks / path.name)
        image = Image.open(path).convert("RGB")
        image.putalpha(hidden)
        image.save(path)
    return folder


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The gradients of each step's loss by the prediction, (B, C, H/8, W/8)."""
    seen: list[Tensor] = []
    square = losses.l2

    def watched(prediction: Tensor, target: Tensor) -> Tensor:
        prediction.register_hook(seen.append)
        return square(prediction, target)

    monkeypatch.setattr(losses, "l2", watched)
    return seen


def train(name: str, model: list[str], images: Path, out: Path, *options: str) -> dict[str, Tensor]:
    module = "networks.lora_flux" if name.startswith("flux") else "networks.lora"
    places = ["--train_data_dir", str(images.parent), "--output_dir", str(out), "--output_name", "lora"]
    length = ["--max_train_steps", "6", "--max_data_loader_n_workers", "0", "--network_module", module]
    assert script(name, [*model, *places, *SHORT, *length, *options]) == 0
    return load_file(out / "lora.safetensors")


def hidden_halves(gradients: list[Tensor]) -> list[str]:
    """Return which half of each image has no gradient at all; the other has one everywhere."""
    found = []
    for image in (image for step in gradients for image in step):
        left, right = image.abs().chunk(2, dim=-1)
        hidden, shown = (left, right) if not left.any() else (right, left)
        assert not hidden.any()
        assert shown.amax(0).min() > 0
        found.append("left" if hidden is left else "right")
    return found


@pytest.mark.parametrize("name", others_slow(SCRIPTS, ["flux_train_network", "train_network"]))
@pytest.mark.parametrize("caching", [[], CACHED], ids=["live", "cached"])
@pytest.mark.parametrize("mask", ["alpha", "beside"])
def test_what_a_mask_hides_has_no_gradient_mirrored_or_not(
    name: str,
    caching: list[str],
    mask: str,
    models: dict[str, list[str]],
    images: Path,
    tmp_path: Path,
    gradients: list[Tensor],
) -> None:
    masks = ["--conditioning_data_dir", str(tmp_path / "masks")]
    chosen = ["--alpha_mask"] if mask == "alpha" else ["--masked_loss", *masks]
    weights = train(name, models[name], images, tmp_path / "out", "--flip_aug", *chosen, *caching)
    halves = hidden_halves(gradients)
    assert len(halves) == 6
    assert set(halves) == {"left", "right"}
    assert any(tensor.any() for key, tensor in weights.items() if "lora_up" in key)


def test_without_a_mask_every_place_has_a_gradient(
    models: dict[str, list[str]], images: Path, tmp_path: Path, gradients: list[Tensor]
) -> None:
    train("train_network", models["train_network"], images, tmp_path / "out")
    assert min(image.abs().amax(0).min() for step in gradients for image in step) > 0


def test_masks_that_hide_everything_leave_nothing_to_learn(
    models: dict[str, list[str]], images: Path, tmp_path: Path
) -> None:
    for path in (tmp_path / "masks").iterdir():
        Image.new("L", (SIDE, SIDE)).save(path)
    masks = ["--masked_loss", "--conditioning_data_dir", str(tmp_path / "masks")]
    weights = train("train_network", models["train_network"], images, tmp_path / "out", *masks)
    assert not any(tensor.any() for key, tensor in weights.items() if "lora_up" in key)


def test_a_run_with_everything_that_varies_is_the_same_with_workers(
    models: dict[str, list[str]], images: Path, tmp_path: Path
) -> None:
    (images / "picture_00.png").rename(images / "picture_30_30_20_20.png")
    varied = "--random_crop --color_aug --flip_aug --alpha_mask --face_crop_aug_range 1.5,3 --resolution 48"
    options = [*shlex.split(varied), "--resize_interpolation", "bicubic"]
    model = models["sdxl_train_network"]
    alone = train("sdxl_train_network", model, images, tmp_path / "alone", *options)
    helped = train(
        "sdxl_train_network",
        model,
        images,
        tmp_path / "helped",
        *options,
        "--max_data_loader_n_workers",
        "2",
    )
    assert [key for key in alone if not torch.equal(alone[key], helped[key])] == []
    with safe_open(tmp_path / "alone" / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_face_crop_aug_range"] == "(1.5, 3.0)"
    assert metadata["ss_resize_interpolation"] == "bicubic"
    assert metadata["ss_random_crop"] == metadata["ss_color_aug"] == "True"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--cache_latents", "--random_crop"], "--cache_latents excludes --random_crop"),
        (
            ["--cache_latents", "--face_crop_aug_range", "1,2"],
            "--cache_latents excludes --face_crop_aug_range",
        ),
        (["--face_crop_aug_range", "2"], "--face_crop_aug_range is '2'; write two numbers"),
        (["--masked_loss", "--strict"], "--masked_loss has no effect without masks"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_loaded(
    options: list[str],
    line: str,
    models: dict[str, list[str]],
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    places = ["--train_data_dir", str(images.parent), "--output_dir", str(tmp_path), "--output_name", "x"]
    given = [*models["train_network"], *places, *SHORT, "--network_module", "networks.lora", *options]
    assert script("train_network", given) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert line in said[-1]
    assert "Traceback" not in "\n".join(said)
