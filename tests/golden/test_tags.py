"""Captions of taggers are those of sd-scripts, text for text; so are the pixels that taggers are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.main import script
from sfumato.tools.captioning.ready_images import on_white
from sfumato.tools.captioning.sentences.written_words import without_written_words
from sfumato.tools.captioning.tags.tagger import square
from tests.golden import derived
from tests.tools.captioning import onnx_tagger

SEED, HEAD = "k_tagger_seed", "k_tagger_head"
SCRIPT = "finetune/tag_images_by_wd14_tagger"
REPLACED = {"1girl": "one girl", "x,y_z": "X,Y", "semi;colon": "S;C"}


def chosen(name: str, *starts: str) -> list[dict[str, Any]]:
    return [case for case in derived.cases(name) if case["id"].startswith(starts)]


def tags(name: str) -> list[tuple[str, str]]:
    groups = derived.settings(name)["tags"]
    names = ("rating", "general", "character")
    return [(tag, group.capitalize()) for group in names for tag in groups[group]]


def run(folder: Path, tagger: Path, case: dict[str, Any], count: int = 3) -> tuple[int, dict[str, str]]:
    """Run the script on some images; return its status, and what files it left beside them."""
    images = onnx_tagger.write_pictures(folder, count)
    for name, text in (case.get("existing") or {}).items():
        (folder / name).write_text(text, "utf-8")
    status = script(SCRIPT, [str(folder), "--repo_id", str(tagger), "--onnx", *case["args"]])
    texts = [path for path in sorted(folder.iterdir()) if path not in images and path.name[0] != "."]
    return status, {path.name: path.read_text("utf-8") for path in texts}


@pytest.fixture(scope="module")
def taggers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("onnxruntime", reason="taggers run in onnxruntime: extra [tagging]")
    folder, head = tmp_path_factory.mktemp("taggers"), derived.settings(HEAD)
    plain = derived.settings(SEED)["probabilities"]
    mapping = [(name, category) for name, category in head["mapping"]]
    return {
        "all": onnx_tagger.write_tagger(folder / "all", tags(SEED), plain),
        "no characters": onnx_tagger.write_tagger(folder / "none", tags(HEAD), head["probabilities_nochar"]),
        "signed": onnx_tagger.write_signed_tagger(folder / "signed", mapping, head["logits"]),
    }


@pytest.mark.parametrize("case", chosen(SEED, "t"), ids=lambda case: case["id"])
def test_tags_are_written_as_recorded(case: dict, taggers: dict[str, Path], tmp_path: Path) -> None:
    expected = case
    if case.get("judge", "").startswith("case "):
        judge = case["judge"].removeprefix("case ")
        (expected,) = (other for other in derived.cases(SEED) if other["id"] == judge)
    status, files = run(tmp_path / "images", taggers["all"], case)
    assert (status, files) == (2 if "error" in expected else 0, expected["files"])


@pytest.mark.parametrize(
    "case", [case for case in chosen(HEAD, "t") if "_" in case["id"]], ids=lambda case: case["id"]
)
def test_tags_are_those_of_later_versions(case: dict, taggers: dict[str, Path], tmp_path: Path) -> None:
    expected = dict(case["files"])
    if "right" in case:  # a version that replaces nothing
        for old, new in REPLACED.items():
            expected = {name: text.replace(old, new) for name, text in expected.items()}
    assert run(tmp_path / "images", taggers["no characters"], case) == (0, expected)


def test_cases_that_later_versions_fail_at_are_those_of_the_first() -> None:
    failing = {case["id"]: case["args"] for case in chosen(HEAD, "t") if case.get("judge") == SEED}
    ours = {case["id"]: case["args"] for case in chosen(SEED, "t")}
    failing.pop("t13_nochar")
    assert len(failing) == 19
    assert failing.items() <= ours.items()


@pytest.mark.parametrize("case", chosen(HEAD, "out_"), ids=lambda case: case["id"])
def test_one_file_gets_all_tags(case: dict, taggers: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    out = tmp_path / f"made{Path(case['args'][1]).suffix.rstrip('>')}"
    arguments = {**case, "args": ["--output_path", str(out), *case["args"][2:]]}
    assert run(folder, taggers["no characters"], arguments) == (0, {})
    assert out.read_text("utf-8") == case["written"].replace("<dir>", folder.as_posix())
    assert [path.name for path in tmp_path.iterdir() if path != folder] == [out.name]


@pytest.mark.parametrize("case", chosen(HEAD, "cl"), ids=lambda case: case["id"])
def test_taggers_with_a_mapping_are_read(case: dict, taggers: dict[str, Path], tmp_path: Path) -> None:
    status, files = run(tmp_path / "images", taggers["signed"], case, count=2)
    assert status == 0
    assert files == case["files"]


@pytest.mark.parametrize(
    ("name", "case"),
    [
        *((HEAD, case) for case in chosen(HEAD, "pp")),
        # The first version averages no areas, though it means to.
        *((SEED, case) for case in chosen(SEED, "pp") if max(case["size"]) <= 450),
    ],
)
def test_taggers_are_given_the_recorded_pixels(name: str, case: dict, tmp_path: Path) -> None:
    width, height, channels = case["size"]
    prefix = derived.settings(name)["input_prefix"]
    noise = derived.inputs(f"img:{prefix}{case['id']}", (height, width, channels)).numpy()
    pixels = np.clip(np.rint(128 + 50 * noise), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    made = square(on_white(tmp_path / "image.png"), case["shape"][0])
    recorded = derived.arrays(name)[f"{case['id']}/values"].numpy()
    places = np.arange(len(recorded)) * 9973 % made.size
    assert made.shape == tuple(case["shape"])
    assert np.abs(made.flatten()[places] - recorded).max() <= 1
    assert abs(made.mean() - case["mean"]) < 0.04


def test_writing_in_images_is_left_out_as_recorded() -> None:
    (case,) = chosen(SEED, "git_words")
    assert [without_written_words(sentence) for sentence in case["sentences"]] == case["results"]
