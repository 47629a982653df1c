"""Caches and the index of images: whatever they hold, a start makes them again, and trains the same."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.images.images import BrokenImageError
from sfumato.data.sources import index, latent_only_images
from tests.caching.fake import family
from tests.data.folders import folder, plan, subset
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome

FEWER = settings(max_examples=settings().max_examples // 3)
"""For what starts a run for each input."""


def training_set(cats: Path) -> TrainingSet:
    return dataset.read([plan(subset(cats))], seed=1)


def fill(cats: Path, *, trust: bool = False) -> TrainingSet:
    """Start as a run does whose caches are on the disk."""
    _, as_family, parts = family(cats.parent)
    made = training_set(cats)
    fill_latents(made, as_family, parts, to_disk=True, trust=trust)
    fill_texts(made, as_family, parts, ("clip", "t5"), to_disk=True, trust=trust)
    return made


def batch(made: TrainingSet) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of all that the images' first batch holds."""
    first = made[next(iter(made.batches(1)))]
    assert first.latents is not None
    return (tuple(first.latents.shape), *(tuple(first.text[name].shape) for name in sorted(first.text)))


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = folder(tmp_path_factory.mktemp("caches") / "cats", [(64, 64)])
    fill(path)
    return path


def npy(value: Any, *, pickles: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, value, allow_pickle=pickles)
    return buffer.getvalue()


def raw_npy(header: str) -> bytes:
    text = header.encode("latin-1", "replace").ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 32


ARRAYS = [
    *map(npy, (0, np.ones(3), np.ones((2, 2), ">f4"), np.array("text"), np.array(b"x"), np.ones(2, complex))),
    *map(
        npy,
        (
            np.array(["2020"], "M8[D]"),
            np.ones(2, np.longdouble),
            np.zeros(2, [("a", "i4")]),
            np.ones((1,) * 9),
        ),
    ),
    *(
        npy(np.array(text))
        for text in ("[]", "{}", '{"encoders": []}', "[" * 90_000, "nan", '{"encoders": {"t5": 1}}')
    ),
    npy(np.array([{"a": 1}], object), pickles=True),
    raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 8), }"),
    raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 4611686018427387904), }"),
    raw_npy("{'descr': '<f4', 'fortran_order': 1, 'shape': [2], }"),
    raw_npy("{'descr': '|V99999999', 'fortran_order': False, 'shape': (2,), }"),
    raw_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }"),
    raw_npy("(" * 100),
    raw_npy("{1: 2, 'a': 3}"),
]


@st.composite
def damaged_cache(draw: st.DrawFn, sound: bytes) -> bytes:
    return draw(damage.damaged_zip(damage.members(sound), st.sampled_from(ARRAYS)))


@FEWER
@given(data=st.data())
@pytest.mark.parametrize("ending", ["_0064x0064_fake.npz", "_fake_te.npz"])
def test_a_damaged_cache_is_made_again(cats: Path, ending: str, data: st.DataObject) -> None:
    file = cats / f"im0{ending}"
    sound = file.read_bytes()
    wanted = batch(fill(cats))
    try:
        file.write_bytes(data.draw(damaged_cache(sound)))
        unchecked = fill(cats, trust=True)
        outcome("caches that are not checked", lambda: batch(unchecked))
        # What was checked may still be damaged where no one has looked: in the numbers.
        made = fill(cats)
        found = outcome("caches", lambda: batch(made))
        assert found in (None, wanted)
    finally:
        file.write_bytes(sound)


SIZED = {"latents.npy": npy(np.ones(4)), "original_size.npy": npy(np.array([64, 48]))}


@given(content=damage.damaged_zip(SIZED, st.sampled_from(ARRAYS)))
def test_latents_of_an_image_that_is_gone_tell_its_size_or_are_left_out(
    content: bytes, tmp_path: Path
) -> None:
    file = tmp_path / "im.npz"
    file.write_bytes(content)

    def size() -> tuple[int, int] | None:
        try:
            return latent_only_images.read_header(str(file)).size
        except BrokenImageError:
            return None

    found = outcome("latents without an image", size)
    assert found is None or min(found) >= 1


FINDINGS = [
    "",
    "64x64",
    "0x0",
    "-1x5",
    "ax",
    "64x64 animated",
    "9" * 5000 + "x1",
    "x",
    "6",
    1,
    2.5,
    None,
    b"\xff",
]


@FEWER
@given(data=st.data())
def test_a_damaged_index_is_not_believed(cats: Path, data: st.DataObject) -> None:
    file = cats / index.NAME
    training_set(cats)
    sound, wanted = file.read_bytes(), list(training_set(cats).sets[0].images)
    try:
        if data.draw(st.booleans()):
            file.write_bytes(data.draw(damage.damaged_bytes(sound)))
        else:
            _exchange(file, data)
        found = outcome("index of images", lambda: list(training_set(cats).sets[0].images))
        assert found is not None
        assert [image.path for image in found] == [image.path for image in wanted]
    finally:
        file.write_bytes(sound)


def _exchange(file: Path, data: st.DataObject) -> None:
    """Put other findings, or other columns, into a sound index."""
    with closing(sqlite3.connect(file)) as connection, connection:
        change = data.draw(st.sampled_from(["finding", "name", "column", "table", "view", "version"]))
        value = data.draw(st.sampled_from(FINDINGS))
        if change == "finding":
            second = "instr(substr(stamped, instr(stamped, ' ') + 1), ' ')"
            stamp = f"substr(stamped, 1, instr(stamped, ' ') + {second})"
            connection.execute(
                f"UPDATE findings SET stamped = {stamp} || ?", (value if value is not None else "",)
            )
            return
        if change == "name":
            connection.execute(
                "UPDATE OR IGNORE findings SET stamped = ?", (value if value is not None else b"",)
            )
            return
        if change == "version":
            connection.execute(f"PRAGMA user_version = {data.draw(st.integers(-5, 5))}")
            return
        rows = connection.execute("SELECT * FROM findings").fetchall()
        connection.execute("DROP TABLE findings")
        if change == "column":
            connection.execute("CREATE TABLE findings (name, kind)")
        elif change == "table":
            connection.execute("CREATE TABLE findings (kind, name, stamped)")
            connection.executemany(
                "INSERT INTO findings VALUES (?, ?, ?)", [(*row[:2], value) for row in rows]
            )
        else:
            connection.execute("CREATE VIEW findings AS SELECT 1 AS kind, 2 AS name, 3 AS stamped")


def test_numbers_of_a_cache_are_what_is_trained_after_all(cats: Path) -> None:
    assert batch(fill(cats))[0] == (1, 4, 8, 8)
    assert json.loads(str(np.load(cats / "im0_fake_te.npz")["sfumato_record"]))["encoders"].keys() == {
        "clip",
        "t5",
    }
