from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.captions import caption_files
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.sources import index, sources
from sfumato.data.sources.index import Index
from tests.data.folders import folder, image, plan, subset

LONG_AGO_NS = 1_600_000_000_000_000_000


def age(path: Path, ns: int = LONG_AGO_NS) -> None:
    for file in path.iterdir() if path.is_dir() else [path]:
        os.utime(file, ns=(ns, ns))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Name the images and captions that are opened."""
    seen: list[str] = []

    def noting(function):
        return lambda path: seen.append(os.path.basename(path)) or function(path)

    monkeypatch.setattr(sources, "read_header", noting(sources.read_header))
    monkeypatch.setattr(caption_files, "read", noting(caption_files.read))
    return seen


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    path = folder(tmp_path / "cats", [(64, 64), (96, 48), (40, 80)])
    age(path)
    return path


def read(path: Path) -> TrainingSet:
    return dataset.read([plan(subset(path))], seed=1)


def note(known: Index, kind: str, path: Path, finding: str) -> None:
    known.learn(kind, str(path), finding, index.status_of(str(path)))


def rows(path: Path) -> set[tuple[str, str]]:
    with closing(sqlite3.connect(path / index.NAME)) as connection:
        return set(connection.execute("SELECT kind, name FROM findings"))


def test_a_restart_opens_nothing_and_reads_the_same(cats: Path, opened: list[str]) -> None:
    first = read(cats)
    assert len(opened) == 6
    opened.clear()
    assert read(cats).sets[0].images == first.sets[0].images
    assert opened == []


def test_only_what_changed_is_opened_though_its_size_is_the_same(cats: Path, opened: list[str]) -> None:
    read(cats)
    opened.clear()
    (cats / "im1.txt").write_text((cats / "im1.txt").read_text()[::-1])
    age(cats / "im1.txt", LONG_AGO_NS + 1)
    image(cats / "im2.png", (80, 40))
    age(cats / "im2.png", LONG_AGO_NS - 1)
    (image_set,) = read(cats).sets
    assert opened == ["im1.txt", "im2.png"]
    assert image_set.images[1].caption == "1d ,1c ,1b ,1a"
    assert image_set.size(2) == (80, 40)
    opened.clear()
    read(cats)
    assert opened == []


def test_files_that_may_change_within_the_same_tick_are_opened_again(cats: Path, opened: list[str]) -> None:
    age(cats / "im0.txt", time.time_ns())
    read(cats)
    opened.clear()
    read(cats)
    assert opened == ["im0.txt"]


def test_captions_by_other_rules_need_no_opening(cats: Path, opened: list[str]) -> None:
    (cats / "im0.txt").write_text("one\r\ntwo\n")
    age(cats)
    assert read(cats).sets[0].images[0].caption == "one"
    opened.clear()
    wild = CaptionSettings(enable_wildcard=True)
    found = dataset.read([plan(subset(cats, captions=wild))], seed=1)
    assert found.sets[0].images[0].caption == "one\ntwo"
    assert opened == []


def test_files_that_are_gone_are_forgotten_when_the_index_changes(cats: Path) -> None:
    read(cats)
    (cats / "im1.png").unlink()
    (cats / "im1.txt").unlink()
    image(cats / "new.png", (64, 64), "x")
    age(cats)
    read(cats)
    names = {f"{stem}.{suffix}" for stem in ("im0", "im2", "new") for suffix in ("png", "txt")}
    assert {name for _, name in rows(cats)} == names


@pytest.mark.parametrize("damage", ["text", "torn", "older"])
def test_an_index_that_cannot_be_used_is_made_again(cats: Path, opened: list[str], damage: str) -> None:
    read(cats)
    file = cats / index.NAME
    if damage == "older":
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(f"PRAGMA user_version = {index._VERSION - 1}")
            connection.execute("UPDATE findings SET stamped = replace(stamped, 'x', 'x1')")
    else:
        file.write_bytes(b"no database" * 500 if damage == "text" else file.read_bytes()[:5000])
    opened.clear()
    assert read(cats).sets[0].size(1) == (96, 48)
    assert len(opened) == 6
    opened.clear()
    read(cats)
    assert opened == []


def test_a_folder_that_cannot_hold_an_index_does_without_and_says_so_once(
    cats: Path, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    (cats / index.NAME).mkdir()
    with caplog.at_level(logging.INFO):
        training_set = read(cats)
        note(training_set.index, "other", cats / "im0.png", "x")
        training_set.index.save()
    assert caplog.text.count(f"{cats} has no index of its files") == 1
    opened.clear()
    assert len(read(cats).sets[0].images) == 3
    assert len(opened) == 6


def test_names_that_are_no_text_are_read_each_time(tmp_path: Path, opened: list[str]) -> None:
    path = folder(tmp_path / "cats", [(64, 64)])
    os.rename(path / "im0.png", os.path.join(os.fsencode(path), b"\xff.png"))
    age(path)
    for _ in range(2):
        opened.clear()
        assert read(path).sets[0].images[0].size == (64, 64)
    assert opened == [os.fsdecode(b"\xff.png")]


def test_what_was_found_out_counts_for_this_finding_and_this_file_alone(cats: Path) -> None:
    path, known = cats / "im0.png", Index()
    note(known, "latents", path, "vae a")
    known.save()
    files = [("latents", path), ("texts", path), ("latents", cats / "im1.png"), ("latents", cats / "none")]
    recalled = list(known.recall_all((kind, str(file)) for kind, file in files))
    assert [finding for _, finding in recalled] == ["vae a", None, None, None]
    assert [status and status.st_mtime_ns for status, _ in recalled] == [LONG_AGO_NS] * 3 + [None]
    age(path, LONG_AGO_NS + 1)
    assert next(known.recall_all([("latents", str(path))]))[1] is None


def test_files_are_found_by_relative_paths_and_where_folders_cannot_be_opened(
    cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Index()
    for name in ("im0.png", "im1.png"):
        note(known, "latents", cats / name, name)
    known.save()
    monkeypatch.chdir(cats)
    asked = ["im0.png", "../cats/im1.png", "im1.png", str(cats / "im0.png")]
    expected = ["im0.png", "im1.png", "im1.png", "im0.png"]
    for supported in (os.supports_dir_fd, set()):
        monkeypatch.setattr(os, "supports_dir_fd", supported)
        assert [found for _, found in Index().recall_all(("latents", one) for one in asked)] == expected


def test_several_processes_add_to_one_index(cats: Path) -> None:
    first, second = Index(), Index()
    for each, name in ((first, "im0.png"), (second, "im1.png")):
        note(each, "latents", cats / name, "x")
    first.save()
    second.save()
    assert {name for _, name in rows(cats)} == {"im0.png", "im1.png"}
