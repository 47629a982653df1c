"""What a restart opens and makes again, with an index beside the images and without."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.data.sources import index
from sfumato.models.interface.family import VAE
from sfumato.models.interface.parts import Parts
from tests.caching.fake import FakeFamily, family
from tests.data.folders import folder, image, plan, subset

SIZES = [(64, 64), (64, 64), (96, 48)]
LONG_AGO_NS = 1_600_000_000_000_000_000

_opened: list[str] = []
_listening = False


def _listen(event: str, about: tuple[Any, ...]) -> None:
    if _listening and event == "open" and str(about[0]).endswith(".npz"):
        _opened.append(os.path.basename(str(about[0])))


sys.addaudithook(_listen)  # cannot be removed, and hears every way of opening a file


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Name the cache files that are opened."""
    monkeypatch.setattr(sys.modules[__name__], "_listening", True)
    _opened.clear()
    return _opened


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    path = folder(tmp_path / "cats", SIZES)
    age(path)
    start(path)
    return path


def age(path: Path, ns: int = LONG_AGO_NS) -> None:
    for file in path.iterdir() if path.is_dir() else [path]:
        os.utime(file, ns=(ns, ns))


def start(
    path: Path, change: Callable[[FakeFamily, Parts], None] = lambda fake, parts: None, **options: Any
) -> tuple[int, int]:
    """Start a run that caches on disk; return how many latents and captions it encodes."""
    fake, as_family, parts = family(path.parent, mask=options.pop("mask", False))
    change(fake, parts)
    num_texts, encode = 0, fake.encode_text

    def counting(encoders: Any, tokens: Any) -> Any:
        nonlocal num_texts
        num_texts += len(tokens["t5"])
        return encode(encoders, tokens)

    fake.encode_text = counting  # type: ignore[method-assign]
    resolution = options.pop("resolution", 64)
    training_set = dataset.read([plan(subset(path, **options), resolution=resolution)], seed=1)
    fill_latents(training_set, as_family, parts, to_disk=True)
    fill_texts(training_set, as_family, parts, ("clip", "t5"), to_disk=True)
    batch = training_set[training_set.batches(1)[0]]
    assert batch.latents is not None
    assert batch.text
    return sum(fake.num_encoded), num_texts


def opened_by_start(path: Path, opened: list[str]) -> set[str]:
    """Start once more, as far as the check of the caches."""
    opened.clear()
    _, as_family, parts = family(path.parent)
    training_set = dataset.read([plan(subset(path))], seed=1)
    fill_latents(training_set, as_family, parts, to_disk=True)
    fill_texts(training_set, as_family, parts, ("clip", "t5"), to_disk=True)
    return set(opened)


def test_a_restart_opens_no_cache_file(cats: Path, opened: list[str]) -> None:
    assert opened_by_start(cats, opened) == set()


def test_without_the_index_every_file_is_opened_once_and_nothing_made_again(
    cats: Path, opened: list[str]
) -> None:
    age(cats)  # caches too: those just written might change within the tick of the clock
    for file in cats.glob("*.png"):
        os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))
    (cats / index.NAME).unlink()
    assert len(opened_by_start(cats, opened)) == 2 * len(SIZES)
    assert opened_by_start(cats, opened) == set()


@pytest.fixture(params=["index", "no index"])
def known(request: pytest.FixtureRequest, cats: Path) -> Path:
    """Caches of an earlier run, with its index and without."""
    if request.param == "no index":
        (cats / index.NAME).unlink()
    return cats


class TestExactlyTheCachesConcernedAreMadeAgain:
    def test_none_if_nothing_changed(self, known: Path) -> None:
        assert start(known) == (0, 0)

    def test_one_text_for_a_changed_caption_of_the_same_length(self, known: Path) -> None:
        file = known / "im1.txt"
        file.write_text(file.read_text()[::-1])
        age(file, LONG_AGO_NS + 1)
        assert start(known) == (0, 1)
        assert start(known) == (0, 0)

    def test_one_latent_for_a_changed_image_of_the_same_size(self, known: Path) -> None:
        age(known / "im1.png", LONG_AGO_NS - 1)
        assert start(known) == (1, 0)
        assert start(known) == (0, 0)

    def test_one_latent_for_an_image_of_another_shape(self, known: Path) -> None:
        image(known / "im1.png", (48, 96))
        age(known / "im1.png")
        assert start(known) == (1, 0)

    def test_all_latents_for_another_vae_and_again_for_the_first(self, known: Path) -> None:
        vae = known.parent / f"{VAE}.safetensors"
        before = vae.read_bytes()
        for content in (b"other" * 77, before):
            vae.write_bytes(content)
            assert start(known) == (len(SIZES), 0)
            assert start(known) == (0, 0)

    def test_no_latents_for_a_coarser_precision_and_none_on_the_way_back(self, known: Path) -> None:
        def in_half(_: FakeFamily, parts: Parts) -> None:
            parts.dtypes = {VAE: torch.bfloat16}

        assert start(known, in_half) == (0, 0)
        assert start(known) == (0, 0)

    def test_all_latents_for_another_resolution_and_none_on_the_way_back(self, known: Path) -> None:
        assert start(known, resolution=96) == (len(SIZES), 0)
        assert start(known) == (0, 0)

    def test_mirrored_latents_for_flips_and_none_without_them(self, known: Path) -> None:
        assert start(known, flip_aug=True) == (2 * len(SIZES), 0)
        assert start(known) == (0, 0)

    def test_all_texts_for_another_text_encoder(self, known: Path) -> None:
        (known.parent / "t5.safetensors").write_bytes(b"other" * 50)
        assert start(known) == (0, len(SIZES))

    def test_all_texts_for_another_setting_of_the_encoders(self, known: Path) -> None:
        assert start(known, mask=True) == (0, len(SIZES))

    def test_one_cache_for_a_damaged_file_which_is_named(
        self, known: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        files = [next(known.glob("im2_*_fake.npz")), known / "im2_fake_te.npz"]
        for file in files:
            file.write_bytes(file.read_bytes()[:-40])
        assert start(known) == (1, 1)
        assert all(f"{file} is damaged" in caplog.text for file in files)

    def test_one_cache_for_a_file_that_is_gone(self, known: Path) -> None:
        next(known.glob("im2_*_fake.npz")).unlink()
        (known / "im1_fake_te.npz").unlink()
        assert start(known) == (1, 1)

    def test_those_that_another_program_replaced(self, known: Path) -> None:
        file = next(known.glob("im0_*_fake.npz"))
        with np.load(file) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        record = next(name for name in kept if name.startswith("sfumato_record"))
        kept[record] = np.array(str(kept[record]).replace('"dtype"', '"other"'))
        np.savez(file, **kept)
        assert start(known) == (1, 0)
