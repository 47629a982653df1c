"""What the pages about data say is what the code does: every example is read, every key is in the table."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset
from sfumato.data.config import blueprint
from sfumato.data.config.subset_kinds import ALL
from sfumato.data.config.toml_keys import DATASET, GENERAL, KEYS, SUBSET
from tests import tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("datasets.md", "augmentation_and_masks.md")]


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"```{language}\n(.*?)```", re.DOTALL)
    return [block for page in PAGES for block in pattern.findall(page.read_text("utf-8"))]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that has the folders of the examples."""
    for name in ("photos", "drawings", "cats", "masks", "people", "cut_out"):
        for path in tiny.pictures(tmp_path / name, 1):
            path.rename(path.with_name("cat.png"))
            path.with_suffix(".txt").rename(path.with_name("cat.txt"))
    (metadata,) = blocks("json")
    (tmp_path / "captions.json").write_text(metadata)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("example", blocks("toml"))
def test_an_example_is_read_and_its_images_are_loaded(example: str, workplace: Path) -> None:
    file = workplace / "example.toml"
    file.write_text(example)
    config = [DatasetConfig(dataset_config=file), CaptionConfig(caption_extension=".txt")]
    run = Run("script", "family", [*config, ImageConfig(), LossConfig(masked_loss=True)])
    training_set = dataset.read(blueprint.plans(run), seed=1)
    assert sum(len(training_set[plan]) for plan in training_set.batches(1)) >= 1


def test_the_examples_are_found() -> None:
    assert len(blocks("toml")) >= 7
    assert json.loads(blocks("json")[0])["dog"]["train_resolution"] == [768, 512]


def rows() -> dict[str, list[str]]:
    table = PAGES[0].read_text("utf-8").partition("## Every key")[2].partition("\n## ")[0]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines() if line.startswith("| `")]
    return {cell[0].strip(" `"): [text.strip() for text in cell[1:]] for cell in cells}


def test_every_key_is_in_the_table_with_its_places_and_kinds() -> None:
    letters = {"g": GENERAL, "d": DATASET, "s": SUBSET}
    assert rows().keys() == KEYS.keys()
    for name, (where, _, text) in rows().items():
        assert tuple(letters[letter] for letter in where.split()) == KEYS[name].tables, name
        marked = re.search(rf"\(((?:{'|'.join(ALL)}|, )+)\)$", text)
        named = marked[1].split(", ") if marked else ALL
        assert sorted(named) == sorted(KEYS[name].kinds), name


def test_defaults_in_the_table_are_those_of_the_options() -> None:
    defaults: dict[str, Any] = {
        field.name: field.default
        for section in (DatasetConfig, CaptionConfig, ImageConfig)
        for field in fields(section)
    }
    defaults |= {"batch_size": defaults["train_batch_size"], "num_repeats": defaults["dataset_repeats"]}
    for name, (_, shown, _) in rows().items():
        default = defaults.get(name, False if name == "is_reg" else None)
        if default in (None, ""):
            assert shown == "none", name
        elif isinstance(default, bool):
            assert shown == str(default).lower(), name
        else:
            assert shown.strip("`") == f"{default:g}" if isinstance(default, float) else str(default), name
