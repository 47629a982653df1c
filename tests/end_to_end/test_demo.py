"""The whole demonstration, with the figures that it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from sfumato.cli.main import main
from sfumato.demo import base, data_sets, training
from sfumato.demo import main as demo
from sfumato.demo.data_sets import PLAIN, REMINDED
from sfumato.demo.main import FIGURES, SHEET
from sfumato.demo.photographs import KNOWN
from sfumato.demo.sheet import TILE_PX


def test_demonstration_makes_its_files_and_says_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in {"max_train_steps": "1", "lr_warmup_steps": "0"}.items():
        monkeypatch.setitem(training._OPTIONS, option, value)
    monkeypatch.setattr(base, "NUM_STEPS", 2)
    for module in (demo, data_sets):
        monkeypatch.setattr(module, "KNOWN", KNOWN[:1])
    folder = tmp_path / "demo"
    assert main(["demo", str(folder)]) == 0
    figures = json.loads((folder / FIGURES).read_text())
    assert figures["kept_db"].keys() == {PLAIN, REMINDED}
    assert len(set(figures["subject_db"].values())) == 3
    shown = capsys.readouterr().out
    for path in (folder / SHEET, *(training.lora_file(folder, name) for name in (PLAIN, REMINDED))):
        assert path.exists()
        assert str(path) in shown


@pytest.mark.slow
def test_demonstration_keeps_its_promises(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = subprocess.run(
        [sys.executable, "-m", "sfumato", "demo", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    figures = json.loads((folder / FIGURES).read_text())
    assert figures["subject_db"]["0"] < 14
    assert figures["subject_db"]["0"] < figures["subject_db"]["0.5"] < figures["subject_db"]["1"]
    assert figures["subject_db"]["1"] >= 28
    assert min(figures["kept_db"][REMINDED].values()) >= 20
    assert max(figures["kept_db"][PLAIN].values()) < 20
    with Image.open(folder / SHEET) as sheet:
        assert sheet.width > 8 * TILE_PX
    for name in (PLAIN, REMINDED):
        with safe_open(training.lora_file(folder, name), "pt") as file:
            assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in file.keys()  # noqa: SIM118
    assert "memorised" in result.stdout
    assert str(folder / SHEET) in result.stdout
