"""The report works on a plain folder, and finds flaws of images and captions beside those of a data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from sfumato.cli.main import main
from sfumato.tools.inspection import flaws
from tests import tiny


def test_a_plain_folder_is_looked_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = tiny.pictures(tmp_path, 8, (96, 96), captions=None)
    for path in paths:
        path.with_suffix(".txt").write_text(f"mycat, fur, {path.stem}", "utf-8")
    paths[0].with_suffix(".txt").write_text("fur, mistaken", "utf-8")
    with Image.open(paths[1]) as image:
        image.load()
    barred = Image.new("RGB", (96, 96))
    barred.paste(image.resize((96, 64)), (0, 16))
    barred.save(paths[1])
    image.filter(ImageFilter.GaussianBlur(12)).save(paths[2])
    options = ["--caption_extension", ".txt", "--resolution", "64", "--trigger_word", "mycat"]
    assert main(["inspect", str(tmp_path), *options]) == 0
    said = capsys.readouterr().out
    assert "1 image has bars" in said
    assert "picture_01.png: bars take 33%" in said
    assert "picture_02.png" in said[said.index("much less sharp") :]
    assert "1 caption lacks the word 'mycat'" in said
    assert "1 tag is in every caption" in said


def test_bars_have_one_colour_at_both_borders() -> None:
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    assert flaws.bars(picture) == 0
    assert flaws.bars(Image.new("RGB", (64, 64))) == 0, "an image of one colour has no bars"
    for box, share in (((0, 8, 64, 56), 0.25), ((16, 0, 48, 64), 0.5), ((0, 8, 64, 64), 0.0)):
        barred = Image.new("RGB", (64, 64), (9, 9, 9))
        barred.paste(picture.crop(box), box[:2])
        assert flaws.bars(barred) == share
    assert flaws.sharpness(picture) > 100 * flaws.sharpness(picture.filter(ImageFilter.GaussianBlur(4)))
