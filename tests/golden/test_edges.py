"""Edges are those of OpenCV's Canny, to the pixel."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.main import script
from tests.golden import derived


def picture(width: int, height: int, period: int) -> np.ndarray:
    """Return the RGB image that the recorded cases describe."""
    x, y = np.meshgrid(np.arange(width, dtype=float), np.arange(height, dtype=float))
    inside = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2
    red = 127 + 100 * np.sin(x / period) * np.cos(y / (period + 3))
    planes = [red, np.where(inside, 220.0, 40.0), x * 255 / width]
    return np.clip(np.rint(np.stack(planes, axis=-1)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    "case",
    [case for case in derived.cases("k_tagger_seed") if case["id"].startswith("canny")],
    ids=lambda case: case["id"],
)
def test_edges_are_those_recorded(case: dict, tmp_path: Path) -> None:
    source, target = tmp_path / "image.png", tmp_path / "made" / "edges.png"
    Image.fromarray(picture(*case["size"], case["period"])).save(source)
    low, high = map(str, case["thresholds"])
    arguments = ["--input", str(source), "--output", str(target), "--thres1", low, "--thres2", high]
    assert script("tools/canny", arguments) == 0
    found = np.asarray(Image.open(target))
    assert found.shape == tuple(case["shape"])
    assert int((found > 0).sum()) == case["edges"]
    assert (found > 0).sum(axis=1).tolist() == case["rows"]
    assert hashlib.sha256(found.tobytes()).hexdigest() == case["hash"]


def test_what_is_missing_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("tools/canny", []) == 2
    assert "--input is missing" in capsys.readouterr().err
    (tmp_path / "no.png").write_text("no image", "utf-8")
    assert (
        script("tools/canny", ["--input", str(tmp_path / "no.png"), "--output", str(tmp_path / "x.png")]) == 2
    )
    assert "cannot be read" in capsys.readouterr().err
