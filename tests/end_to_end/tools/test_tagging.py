"""Tagging goes on where it was stopped, leaves damaged images out, and can be undone."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sfumato.cli.main import main, script
from tests.hub.conftest import empty_hub as empty_hub
from tests.hub.conftest import served as served
from tests.hub.stand_in import Hub, Repo
from tests.tools.captioning import onnx_tagger

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None, reason="taggers run in onnxruntime: extra [tagging]"
)
TAGS = [("general", "Rating"), ("explicit", "Rating"), ("cat_ears", "General"), ("dog", "General")]
ROWS = [[0.9, 0.1, 0.8, 0.1], [0.2, 0.8, 0.1, 0.9], [0.5, 0.5, 0.9, 0.4]]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return onnx_tagger.write_tagger(tmp_path_factory.mktemp("tagger"), TAGS, ROWS)


def captions(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in sorted(folder.glob("p*.txt"))}


SLOW = """
import sys, time
from sfumato.cli.main import script
from sfumato.tools.captioning.tags.tagger import Tagger

plain = Tagger.captions
Tagger.captions = lambda tagger, batch: time.sleep(0.03) or plain(tagger, batch)
script("finetune/tag_images_by_wd14_tagger", sys.argv[1:])
"""


def forty(folder: Path) -> Path:
    """Write 40 images of three colours."""
    paths = onnx_tagger.write_pictures(folder, 3)
    for number in range(3, 40):
        (folder / f"p{number}.png").write_bytes(paths[number % 3].read_bytes())
    return folder


def test_killed_tagging_goes_on_without_doing_anything_twice(
    tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = forty(tmp_path)
    arguments = [str(folder), "--repo_id", str(tagger)]
    with subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stderr=subprocess.DEVNULL) as run:
        while len(captions(folder)) < 5 and run.poll() is None:
            time.sleep(0.01)
        run.kill()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("p*.txt")}
    assert 5 <= len(kept) < 40
    assert script("finetune/tag_images_by_wd14_tagger", [*arguments, "--skip_existing"]) == 0
    assert f"{len(kept)} of 40 images have captions already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(captions(folder)) == 40
    assert captions(folder)["p39.txt"] == captions(folder)["p0.txt"] == "cat_ears\n"
    assert main(["caption", "tags", str(folder), "--undo"]) == 0
    assert captions(folder) == {}


def test_one_file_goes_on_behind_its_last_whole_line(tagger: Path, tmp_path: Path) -> None:
    folder, out = forty(tmp_path / "images"), tmp_path / "tags.json"
    lines = [
        {"image_path": str(folder / f"p{at}.png"), "caption": "kept", "image_size": [1, 1]} for at in (0, 1)
    ]
    unfinished = out.with_name("tags.json.unfinished")
    unfinished.write_text("\n".join(map(json.dumps, lines))[:-5], "utf-8")
    arguments = ["caption", "tags", str(folder), "--repo_id", str(tagger), "--output_path", str(out)]
    assert main([*arguments, "--skip_existing"]) == 0
    found = [row["tags"] for row in json.loads(out.read_text("utf-8")).values()]
    assert len(found) == 40
    assert found.count("kept") == 1
    assert not unfinished.exists()


def test_damaged_images_are_left_out_and_listed(
    tagger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_tagger.write_pictures(tmp_path, 3)
    (tmp_path / "p1.png").write_bytes((tmp_path / "p1.png").read_bytes()[:40])
    (tmp_path / "page.jpg").write_text("<html>", "utf-8")
    assert main(["caption", "tags", str(tmp_path), "--repo_id", str(tagger), "--batch_size", "2"]) == 0
    assert captions(tmp_path) == {"p0.txt": "cat_ears\n", "p2.txt": "cat_ears, dog\n"}
    said = capsys.readouterr().err
    assert "p1.png is left out" in said
    assert "page.jpg is left out" in said
    assert "model.onnx runs on CPU" in said


def test_a_fixed_batch_wins_and_is_filled_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixed = onnx_tagger.write_tagger(tmp_path / "tagger", TAGS, ROWS, batch=2)
    folder = tmp_path / "images"
    onnx_tagger.write_pictures(folder, 3)
    assert main(["caption", "tags", str(folder), "--repo_id", str(fixed), "--batch_size", "4"]) == 0
    assert len(captions(folder)) == 3
    assert "--batch_size is 4, but the model takes 2 images together" in capsys.readouterr().err


def test_words_around_captions_and_what_was_there_before(tagger: Path, tmp_path: Path) -> None:
    onnx_tagger.write_pictures(tmp_path, 2)
    before = "mine \N{LATIN SMALL LETTER E WITH ACUTE}\r\n".encode("cp1252")
    (tmp_path / "p0.txt").write_bytes(before)
    (tmp_path / "p1.txt").write_text("keep", "utf-8")
    arguments = ["caption", "tags", str(tmp_path), "--repo_id", str(tagger)]
    assert main([*arguments, "--dry_run", "--trigger_word", "mycat"]) == 0
    assert (tmp_path / "p1.txt").read_text("utf-8") == "keep"
    options = ["--trigger_word", "mycat", "--text_before", "photo of ", "--text_behind", "."]
    assert main([*arguments, *options, "--frequency_tags"]) == 0
    assert captions(tmp_path) == {
        "p0.txt": "photo of mycat, cat_ears.\n",
        "p1.txt": "photo of mycat, dog.\n",
    }
    assert main(["caption", "tags", str(tmp_path), "--undo"]) == 0
    assert (tmp_path / "p0.txt").read_bytes() == before
    assert (tmp_path / "p1.txt").read_text("utf-8") == "keep"
    assert main(["caption", "tags", str(tmp_path), "--undo"]) == 2


@pytest.mark.parametrize("folder", ["", "/sub"])
def test_a_tagger_is_fetched_by_its_name_once(
    folder: str, empty_hub: Hub, tagger: Path, tmp_path: Path
) -> None:
    place = folder.removeprefix("/") and "sub/"
    files = {f"{place}{file.name}": file.read_bytes() for file in tagger.iterdir()}
    empty_hub.repos["somebody/tagger"] = Repo(files | {"variables/large.bin": bytes(1000)})
    onnx_tagger.write_pictures(tmp_path / "images", 1)
    models = tmp_path / "models"
    arguments = ["--repo_id", f"somebody/tagger{folder}", "--model_dir", str(models)]
    assert script("finetune/tag_image_by_wd14_tagger", [str(tmp_path / "images"), *arguments]) == 0
    kept = models / f"somebody_tagger{'_sub' if folder else ''}"
    assert sorted(path.name for path in kept.iterdir()) == ["model.onnx", "selected_tags.csv"]
    assert not empty_hub.asked("large.bin")
    asked = len(empty_hub.log)
    assert script("finetune/tag_image_by_wd14_tagger", [str(tmp_path / "images"), *arguments]) == 0
    assert len(empty_hub.log) == asked


def test_what_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, tagger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx_tagger.write_pictures(tmp_path / "images", 1)
    keras = tmp_path / "models" / "some_tagger"
    keras.mkdir(parents=True)
    (keras / "saved_model.pb").write_bytes(b"")
    arguments = ["caption", "tags", str(tmp_path / "images"), "--model_dir", str(keras.parent), "--offline"]
    assert main([*arguments, "--repo_id", "some/tagger"]) == 2
    assert "holds the tagger for TensorFlow" in capsys.readouterr().err
    assert main([*arguments, "--repo_id", "another/tagger"]) == 2
    assert "has no model.onnx with selected_tags.csv" in capsys.readouterr().err
    (keras / "model.onnx").write_bytes(b"no model")
    (keras / "selected_tags.csv").write_bytes((tagger / "selected_tags.csv").read_bytes())
    assert main([*arguments, "--repo_id", "some/tagger"]) == 2
    assert "cannot be read as an ONNX model" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main([*arguments, "--repo_id", "some/tagger"]) == 2
    assert "tagging needs onnxruntime" in capsys.readouterr().err
