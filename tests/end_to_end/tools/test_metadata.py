"""What a file says of itself is printed as other programs expect it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sfumato.cli.main import main, script


def test_metadata_is_printed_as_sorted_json_with_its_strings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strings = {"ss_network_dim": "4", "modelspec.title": "Äpfel", "ss_tag_frequency": '{"a": {"b": 1}}'}
    save_file({"a": torch.zeros(1)}, tmp_path / "lora.safetensors", strings)
    assert script("tools/show_metadata", ["--model", str(tmp_path / "lora.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert shown == json.dumps(strings, indent=4, sort_keys=True) + "\n"
    assert main(["show-metadata", "--model", str(tmp_path / "lora.safetensors")]) == 0
    assert capsys.readouterr().out == shown


def test_a_file_without_metadata_is_an_empty_object_and_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    assert main(["show-metadata", "--model", str(tmp_path / "bare.safetensors")]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {}
    assert "carries no metadata" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model must be given"),
        (["--model", "nothing.safetensors"], "nothing.safetensors does not exist"),
        (["--model", "old.ckpt"], "pickled files carry no metadata"),
        (["--model", "."], "which is a folder"),
        (["--model", "empty.safetensors"], "is empty"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.safetensors").touch()
    assert main(["show-metadata", *arguments]) == 2
    shown = capsys.readouterr()
    assert message in shown.err.splitlines()[-1]
    assert shown.out == ""
