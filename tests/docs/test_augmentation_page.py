"""The data sets of the page about augmentation and masks are trained as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset
from sfumato.data.config import blueprint
from tests.data.folders import folder, image, pixels

PAGE = Path(__file__).parents[2] / "docs" / "augmentation_and_masks.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("photos", "masks"):
        folder(tmp_path / name, [(80, 60), (60, 80)])
    image(tmp_path / "people" / "ann_40_30_16_16.png", (80, 60), "ann")
    (tmp_path / "cut_out").mkdir()
    Image.fromarray(np.asarray(pixels("cut out", 80, 60, 4))).save(tmp_path / "cut_out" / "x.png")
    (tmp_path / "cut_out" / "x.txt").write_text("x", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_has_three_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_is_read_and_its_batches_load(number: int, workplace: Path) -> None:
    general = '[general]\ncaption_extension = ".txt"\n'
    (workplace / "data.toml").write_text(general + EXAMPLES[number].replace("512", "256"), "utf-8")
    sections = [DatasetConfig(dataset_config=workplace / "data.toml"), LossConfig(masked_loss=number == 1)]
    run = Run("train_network", "sd", [CaptionConfig(), ImageConfig(), *sections])
    made = dataset.read(blueprint.plans(run), seed=1, strict=True)
    batches = [made[p] for epoch in range(1, 5) for p in made.batches(epoch)]
    assert all(batch.pixels is not None for batch in batches)
    assert any(batch.masks is not None for batch in batches) == (number > 0)
