from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.images import images
from sfumato.data.images.images import BrokenImageError
from tests.data.bad_images import png_of_size
from tests.data.folders import image, pixels


def test_a_tensor_spans_minus_one_to_one() -> None:
    image = Image.fromarray(np.array([[[0, 255, 0]]], dtype=np.uint8))
    assert images.to_tensor(image).flatten().tolist() == [-1, 1, -1]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".avif"])
def test_the_size_is_read_from_the_header(tmp_path: Path, suffix: str) -> None:
    assert images.read_size(image(tmp_path / f"a{suffix}", (70, 40))) == (70, 40)


def test_a_photograph_lying_on_its_side_is_set_upright(tmp_path: Path) -> None:
    path = tmp_path / "side.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels("side", 80, 40)).save(path, exif=exif)
    assert images.read_size(path) == (40, 80)
    assert images.decode(path).size == (40, 80)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.fromarray(pixels("mode", 40, 40)).convert(mode).save(path)
    decoded = images.decode(path)
    assert (decoded.mode, decoded.size) == ("RGB", (40, 40))


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path: Path) -> None:
    grey = np.array([[0, 0x4000, 0x8080, 0xFFFF]] * 4, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.asarray(images.decode(tmp_path / "grey.png"))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_a_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    decoded = images.decode(tmp_path / "x.png")
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(10, 20, 30), (200, 100, 50)]


def test_an_image_too_large_to_read_is_refused_with_the_limit_in_any_format(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png_of_size((13378, 13378)))
    Image.new("L", (16, 16)).save(tmp_path / "x.jpg")
    jpeg = (tmp_path / "x.jpg").read_bytes()
    at = jpeg.index(b"\xff\xc0") + 5
    (tmp_path / "x.jpg").write_bytes(jpeg[:at] + b"\xff\xff\xff\xff" + jpeg[at + 4 :])
    for name in ("x.png", "x.jpg"):
        with pytest.raises(BrokenImageError, match="more than 178 million pixels"):
            images.read_header(tmp_path / name)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_that_covers_what_is_needed(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels("large", 800, 400)).save(tmp_path / "x.jpg", exif=exif)
    assert images.decode(tmp_path / "x.jpg", at_least=(90, 180)).size == (400, 800)
    assert images.decode(tmp_path / "x.jpg", at_least=(90, 180), large=1).size == (100, 200)


def test_a_format_that_takes_a_plugin_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "x.jxl").write_bytes(b"\xff\x0a\0\0\0\0")
    with pytest.raises(BrokenImageError, match=r"-m pip install pillow-jxl-plugin$"):
        images.read_header(tmp_path / "x.jxl")


def test_jpeg_xl_is_read_where_its_plugin_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pillow_jxl")
    image(tmp_path / "x.jxl", (70, 40))
    assert images.read_header(tmp_path / "x.jxl") == ((70, 40), False)
    assert images.decode(tmp_path / "x.jxl").size == (70, 40)


def test_the_second_image_behind_a_photograph_is_no_animation(tmp_path: Path) -> None:
    first, second = (Image.fromarray(pixels(name, 40, 40)) for name in "ab")
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[second])
    assert images.read_header(tmp_path / "x.jpg") == ((40, 40), False)


@pytest.mark.parametrize(("size", "says"), [(0, "empty"), (10, "not an image"), (20, "cut short")])
def test_a_damaged_header_is_noticed_without_decoding(tmp_path: Path, size: int, says: str) -> None:
    path = image(tmp_path / "x.png", (50, 50))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(BrokenImageError, match=says):
        images.read_size(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_a_truncated_image_is_broken_when_decoded(tmp_path: Path, suffix: str) -> None:
    path = image(tmp_path / f"x{suffix}", (80, 80))
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(BrokenImageError):
        images.decode(path)
