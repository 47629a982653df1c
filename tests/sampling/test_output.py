"""Image files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from sfumato.errors import UserError
from sfumato.sampling.output import image_files as output
from sfumato.sampling.request import Request

IMAGE = Image.new("RGB", (16, 8), (10, 20, 30))
REQUEST = Request("ein Käfer, 甲虫", "bad, ugly", 16, 8, 4, 2**62, 3.5, 2.0)


def test_an_image_tells_how_it_was_made(tmp_path: Path) -> None:
    path = output.save_image(IMAGE, tmp_path / "new", REQUEST, {"model": "m.safetensors", "lora": ["a;0.5"]})
    assert re.fullmatch(r"\d{8}_\d{6}\.png", path.name)
    assert output.read_request(path) == REQUEST
    with Image.open(path) as image:
        assert image.tobytes() == IMAGE.tobytes()
        record = json.loads(image.info["sfumato"])
    assert record["model"] == "m.safetensors"
    assert record["lora"] == ["a;0.5"]


def test_the_web_uis_can_read_the_parameters(tmp_path: Path) -> None:
    path = output.save_image(IMAGE, tmp_path, REQUEST, {"model": "m"})
    with Image.open(path) as image:
        prompt, negative, settings = image.info["parameters"].split("\n")
    assert prompt == REQUEST.prompt
    assert negative == "Negative prompt: bad, ugly"
    assert settings.startswith("Steps: 4, Sampler: Euler, CFG scale: 2.0, Distilled CFG Scale: 3.5, Seed: ")
    assert "Size: 16x8, Model: m, Version: sfumato" in settings


def test_an_unused_negative_prompt_is_not_shown() -> None:
    assert "Negative" not in output.parameters(Request("x", "bad"), {})


def test_values_with_commas_are_quoted() -> None:
    text = output.parameters(Request("x"), {"adapters": ["a;1.0", "b;0.5"], "none": []})
    assert r'Adapters: "[\"a;1.0\", \"b;0.5\"]"' in text
    assert "None" not in text


def test_images_of_one_second_do_not_overwrite_each_other(tmp_path: Path) -> None:
    paths = {output.save_image(IMAGE, tmp_path, REQUEST) for _ in range(5)}
    assert len(paths) == 5
    assert set(tmp_path.iterdir()) == paths


def test_an_unwritable_folder_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        output.save_image(IMAGE, tmp_path / "file", REQUEST)


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="is full"):
        output.save_image(IMAGE, tmp_path, REQUEST)
    assert not list(tmp_path.iterdir())


def test_foreign_images_and_other_files_are_named(tmp_path: Path) -> None:
    IMAGE.save(tmp_path / "foreign.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match="does not tell how it was made"):
        output.read_request(tmp_path / "foreign.png")
    for name in ("text.png", "missing.png"):
        with pytest.raises(UserError, match="cannot be read as an image"):
            output.read_request(tmp_path / name)
