"""Masks for folders: from each source, in the form that training reads, with a sheet of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from sfumato.cli.main import main
from sfumato.data.images.images import read_size
from sfumato.data.images.masks import decode_mask
from sfumato.tools.masking.segmentation import foreground
from tests import tiny


def disc(path: Path, background: tuple[int, ...], mode: str = "RGB") -> None:
    """Write a red disc of radius 16 about the middle of 64 x 48 pixels."""
    image = Image.new(mode, (64, 48), background)
    ImageDraw.Draw(image).ellipse((16, 8, 48, 40), fill=(200, 20, 20) + (255,) * (mode == "RGBA"))
    image.save(path)


def mask_of(folder: Path, name: str) -> np.ndarray:
    return np.asarray(decode_mask(str(folder / f"{name}.png")))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    disc(folder / "clear.png", (0, 0, 0, 0), "RGBA")
    disc(folder / "green.png", (10, 240, 10))
    (folder / "page.png").write_text("no image", "utf-8")
    return folder


def test_masks_come_from_transparency(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = images.parent / "masks"
    arguments = ["mask", str(images), "--mask_dir", str(masks)]
    assert main(arguments) == 0
    clear, green = mask_of(masks, "clear"), mask_of(masks, "green")
    assert clear[24, 32] == 255
    assert clear[0, 0] == 0
    assert green.min() == 255
    assert clear.shape == (48, 64)
    assert "page.png is left out" in capsys.readouterr().err
    assert read_size(images.parent / "masks_sheet.jpg") == (2 * 232 + 8, 256)
    kept = (masks / "clear.png").stat().st_mtime_ns
    assert main([*arguments, "--skip_existing", "--invert"]) == 0
    assert (masks / "clear.png").stat().st_mtime_ns == kept


def test_a_sheet_goes_without_what_cannot_be_read(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = images.parent / "masks"
    disc(images / "green.jpg", (10, 240, 10))
    arguments = ["mask", str(images), "--mask_dir", str(masks)]
    assert main(arguments) == 0
    assert "images share names" in (said := capsys.readouterr().err).replace(f" in {images}", "")
    assert "green.jpg and green.png" in said
    (masks / "clear.png").write_text("painted over", "utf-8")
    assert main([*arguments, "--skip_existing"]) == 0
    assert f"{masks / 'clear.png'} cannot be shown" in capsys.readouterr().err
    empty = images.parent / "empty"
    empty.mkdir()
    assert main(["mask", str(empty), "--mask_dir", str(masks)]) == 2
    assert "has no images; name the folder" in capsys.readouterr().err


def test_masks_leave_out_a_colour(images: Path) -> None:
    masks = images.parent / "masks"
    options = ["--colour", "#0af00a", "--tolerance", "4", "--grow", "3", "--least", "0.2"]
    assert main(["mask", str(images), "--mask_dir", str(masks), "--mask_from", "colour", *options]) == 0
    green = mask_of(masks, "green")
    assert green[24, 32] == 255
    assert green[24, 14] == 255, "grown by 3 pixels"
    assert green[24, 10] == green[0, 0] == 51, "a fifth"


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="makes an ONNX model: extra [dev]",
)
def test_masks_come_from_a_model(images: Path) -> None:
    import onnx

    helper, kinds = onnx.helper, onnx.TensorProto
    weight = onnx.numpy_helper.from_array(np.array([[[[9.0]], [[-9.0]], [[0.0]]]], np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weight"], ["mask"])],
        "redness",
        [helper.make_tensor_value_info("image", kinds.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("mask", kinds.FLOAT, [1, 1, 32, 32])],
        [weight],
    )
    path = images.parent / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    masks = images.parent / "masks"
    options = ["--mask_from", "model", "--model", str(path), "--model_mean", "0,0,0", "--model_std", "1,1,1"]
    assert main(["mask", str(images), "--mask_dir", str(masks), *options]) == 0
    assert mask_of(masks, "green")[24, 32] > 250
    assert mask_of(masks, "green")[2, 2] < 5
    classes = np.stack([np.full((2, 2), 3.0), np.zeros((2, 2)), np.full((2, 2), 5.0)])
    assert foreground(classes)[0, 0] == pytest.approx(1 - np.exp(3) / (np.exp(3) + 1 + np.exp(5)))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--mask_from", "model"], "needs --model"),
        (["--mask_from", "colour", "--colour", "green"], "#rrggbb"),
        (["--mask_from", "model", "--model", "none.onnx"], "no file"),
    ],
)
def test_what_is_wrong_is_told(
    options: list[str], complaint: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mask", str(images), "--mask_dir", str(images.parent / "masks"), *options]) == 2
    assert complaint in capsys.readouterr().err


def test_training_reads_the_masks(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "page.png").unlink()
    tiny.pictures(images, 1, (64, 48))
    assert main(["mask", str(images), "--mask_dir", str(images.parent / "masks")]) == 0
    text = f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{images.as_posix()}"\n'
    description = images.parent / "data.toml"
    description.write_text(f'{text}mask_dir = "{(images.parent / "masks").as_posix()}"\n', "utf-8")
    assert main(["inspect", str(description)]) == 0
    assert "without a mask" not in (said := capsys.readouterr().out)
    assert "3 images, 3 shown" in said
