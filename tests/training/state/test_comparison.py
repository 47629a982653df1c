from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from sfumato.checkpoints.hashes import file_sha256
from sfumato.data.batches import dataset
from sfumato.errors import UserError
from sfumato.training.core.record import FileRecord, RunRecord, read_record, this_process
from sfumato.training.state import evidence
from sfumato.training.state.comparison import differences
from tests.data.folders import folder, plan, subset


def record(*paths: Path) -> RunRecord:
    files = {
        name: replace(file, sha256=file_sha256(Path(name)))
        for name, file in evidence.file_records(paths).items()
    }
    settings = {"learning_rate": 1e-4, "seed": None, "output_name": "a"}
    return RunRecord("train", {}, settings, 5, ".", {"torch": "2.4"}, this_process(), files, {})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.write_bytes(b"weights")
    noted = record(model)
    noted.write(tmp_path / "a.run.json")
    assert read_record(tmp_path / "a.run.json") == noted
    assert list(differences(noted, noted)) == []
    assert not noted.process.is_gone


@pytest.mark.parametrize("text", ["[1]", "{", '{"version": 1}', '{"version": 9}'])
def test_what_is_no_record_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.run.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.run\.json (is no record|has version 9)"):
        read_record(tmp_path / "a.run.json")


def test_options_and_versions_are_compared(tmp_path: Path) -> None:
    before = record()
    settings = {"learning_rate": 2e-4, "seed": 6, "output_name": "b", "new_option": True}
    now = replace(before, settings=settings, seed=6, versions={"torch": "2.5", "numpy": "2.0"})
    assert list(differences(before, now)) == [
        "--seed was 5 and is 6",
        "--learning_rate was 0.0001 and is 0.0002",
        "--new_option was not there and is True",
        "numpy was not installed and is 2.0",
        "torch was 2.4 and is 2.5",
    ]


def test_a_file_is_read_again_only_if_its_time_alone_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("grown", "rewritten", "same", "touched")]
    for path in paths:
        path.write_bytes(b"weights")
    before, read = record(*paths), []

    def note(path: Path) -> str:
        read.append(path.name)
        return file_sha256(path)

    monkeypatch.setattr("sfumato.training.state.comparison.file_sha256", note)
    paths[0].write_bytes(b"more weights")
    paths[1].write_bytes(b"WEIGHTS")
    for path in (paths[1], paths[3]):
        os.utime(path, (1, 1))
    now = replace(before, files=evidence.file_records(paths))
    assert list(differences(before, now)) == [
        f"{paths[0]} has 12 bytes and had 7",
        f"{paths[1]} holds something else",
    ]
    assert read == ["rewritten", "touched"]
    gone = differences(before, replace(now, files={str(paths[2]): FileRecord(7, 1)}))
    assert next(gone) == f"{paths[0]} is not used, or not there any more"


def test_a_large_folder_has_one_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder(tmp_path / "images", [(64, 64)] * 3)

    def seen() -> RunRecord:
        return replace(record(), images=evidence.image_records(dataset.read([plan(subset(place))], seed=1)))

    monkeypatch.setattr(evidence, "MOST_NAMES", 2)
    before = seen()
    assert [list(entries) for entries in before.images.values()] == [["*"]]
    assert list(differences(before, seen())) == []
    sorted(place.glob("*.png"))[0].unlink()
    assert list(differences(before, seen())) == [f"images or captions of {place} are others"]
