"""Adapter files are rewritten with the names that other programs give their layers, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.checkpoints.header import read_header
from sfumato.cli.main import main, script
from tests.adapters.files.dialects.test_flux_names import QKV, WIDTH, lora, product


def test_files_are_converted_with_their_metadata_and_read_in_either_naming(tmp_path: Path) -> None:
    own, theirs, back = (tmp_path / f"{name}.safetensors" for name in ("own", "theirs", "back"))
    save_file(
        lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0), own, {"ss_output_name": "mine", "sshs_model_hash": "stale"}
    )
    argv = ["--src", "sd-scripts", "--dst", "ai-toolkit", "--src_path", str(own), "--dst_path", str(theirs)]
    assert main(["convert-lora", *argv]) == 0
    assert script("networks/convert_flux_lora", ["--src_path", str(theirs), "--dst_path", str(back)]) == 0
    for path in (theirs, back):
        metadata = read_header(path).metadata
        assert metadata["ss_output_name"] == "mine"
        assert metadata["sshs_model_hash"] != "stale"
    torch.testing.assert_close(product(load_file(back), QKV), product(load_file(own), QKV))
    assert read_adapter(theirs).keys() == read_adapter(own).keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--src", "sd-scripts"], "--src and --dst are both sd-scripts"),
        (["--src", "comfy"], "--src is 'comfy'; give ai-toolkit or sd-scripts"),
        (["--dst_path", "x.safetensors"], "--src_path is not given; name the file to read"),
        (["--src_path", "{own}", "--dst_path", "{out}"], "--src is ai-toolkit, but {own} is not written so"),
        (["--src_path", "{own}", "--dst_path", "{own}"], "--dst_path is {own}, which is read, too"),
        (["--src_path", "{own}", "--dst_path", "{out}.txt"], "end it in .safetensors, .pt or .ckpt"),
    ],
)
def test_what_cannot_be_converted_is_said_in_one_line(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"own": str(tmp_path / "own.safetensors"), "out": str(tmp_path / "out.safetensors")}
    save_file(lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0), names["own"])
    assert main(["convert-lora", *(text.format(**names) for text in options)]) == 2
    assert message.format(**names) in capsys.readouterr().err
    assert not Path(names["out"]).exists()
