"""Folders of a data set by their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sfumato.data.config.folders import subset_folders
from sfumato.errors import UserError


def test_a_class_in_an_older_encoding_is_text(tmp_path: Path) -> None:
    for name in ("2_猫の写真".encode("cp932"), "3_café".encode("latin-1"), "4_犬".encode()):
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
    found = subset_folders("train_data_dir", str(tmp_path))
    assert sorted(each["class_tokens"] for each in found) == ["café", "犬", "猫の写真"]
    assert all(each["image_dir"].is_dir() for each in found)
    os.mkdir(os.fsencode(tmp_path) + b"/5_\x81\x8d")
    with pytest.raises(UserError, match=r"5_\\udc81\\udc8d is no text; rename it"):
        subset_folders("train_data_dir", str(tmp_path))
