from __future__ import annotations

import json
from pathlib import Path

import pytest

from sfumato.data.batches import dataset
from sfumato.data.sources import sources
from sfumato.data.sources.cache_info import NAME
from sfumato.data.sources.complaints import Complaints
from tests.data.folders import folder, image, plan, subset


def test_captions_and_sizes_are_left_for_sd_scripts(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(40, 60), (64, 64)])
    wanted = plan(subset(path, cache_info=True), validation_split=0.5)
    dataset.read([wanted], seed=1)
    assert json.loads((path / NAME).read_text("utf-8")) == {
        str(path / "im0.png"): {"caption": "a0, b0, c0, d0", "resolution": [40, 60]},
        str(path / "im1.png"): {"caption": "a1, b1, c1, d1", "resolution": [64, 64]},
    }


def test_the_file_is_written_only_when_it_would_change_and_never_believed(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(40, 60)])
    wanted = plan(subset(path, cache_info=True))
    sources.read(wanted, Complaints())
    before = (path / NAME).stat().st_mtime_ns
    sources.read(wanted, Complaints())
    assert (path / NAME).stat().st_mtime_ns == before
    image(path / "im0.png", (32, 32), "ü, other")
    (found,) = sources.read(wanted, Complaints())
    assert (found.size, found.caption) == ((32, 32), "ü, other")
    assert '"caption": "ü, other"' in (path / NAME).read_text("utf-8")


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder(tmp_path / "cat", [(40, 60)])
    (path / NAME).mkdir()
    assert len(sources.read(plan(subset(path, cache_info=True)), Complaints())) == 1
    assert f"cache_info: {path / NAME} cannot be written" in caplog.text


def test_without_it_nothing_is_written(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(40, 60)])
    sources.read(plan(subset(path)), Complaints())
    assert not (path / NAME).exists()
