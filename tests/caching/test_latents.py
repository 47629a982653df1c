from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, current_thread
from typing import Any

import numpy as np
import pytest
import torch

from sfumato.caching import store
from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.errors import UserError
from sfumato.models.interface.family import VAE
from sfumato.models.interface.latents import CacheFormat
from sfumato.models.interface.parts import Parts
from tests.caching.fake import FakeFamily, family
from tests.caching.records import forget_records
from tests.data.folders import folder, image, plan, subset

SIZES = [(64, 64), (64, 64), (64, 64), (96, 48), (130, 60)]


def training_set(path: Path, *, resolutions: tuple[int, ...] = (64,), **options: object) -> TrainingSet:
    return dataset.read([plan(subset(path, **options), resolution=side) for side in resolutions], seed=1)


def fill(path: Path, **options: object) -> tuple[FakeFamily, Parts, TrainingSet]:
    """Fill the caches of a folder as a fresh run would."""
    fake, as_family, parts = family(path.parent)
    made = training_set(path, flip_aug=bool(options.pop("flip_aug", False)))
    fill_latents(made, as_family, parts, **options)
    return fake, parts, made


def shown(made: TrainingSet) -> list[tuple[str, torch.Tensor]]:
    batches = [made[p] for p in made.batches(1)]
    assert all(batch.pixels is None and batch.latents is not None for batch in batches)
    return [pair for batch in batches for pair in zip(batch.paths, batch.latents, strict=True)]


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    return folder(tmp_path / "cats", SIZES)


@pytest.mark.parametrize("to_disk", [False, True])
def test_batches_hold_what_the_vae_makes_of_the_images(cats: Path, to_disk: bool) -> None:
    _, parts, made = fill(cats, to_disk=to_disk)
    pixels = dict(zip([p.path for p in made.sets[0].images], range(len(SIZES)), strict=True))
    live = training_set(cats)
    for path, latents in shown(made):
        index = pixels[path]
        batch = next(live[p] for p in live.batches(1) if index in [item.image for item in p.items])
        expected = parts[VAE](batch.pixels)[batch.paths.index(path)]
        assert latents.shape == expected.shape
        assert (latents - expected).abs().max() < 0.1


def test_memory_and_disk_give_the_same_latents(cats: Path) -> None:
    in_memory, on_disk = fill(cats)[2], fill(cats, to_disk=True)[2]
    for (_, first), (_, second) in zip(shown(in_memory), shown(on_disk), strict=True):
        assert torch.equal(first, second)


def test_files_have_the_names_and_arrays_that_sd_scripts_reads(cats: Path) -> None:
    fill(cats, to_disk=True, flip_aug=True)
    with np.load(cats / "im4_0130x0060_fake.npz") as arrays:
        assert set(arrays.files) == {
            *("latents_6x10", "latents_flipped_6x10", "original_size_6x10", "crop_ltrb_6x10"),
            "sfumato_record_6x10",
        }
        assert arrays["latents_6x10"].shape == (4, 6, 10)
        assert arrays["latents_6x10"].dtype == np.float32
        assert arrays["original_size_6x10"].tolist() == [130, 60]
        assert arrays["original_size_6x10"].dtype == np.int64
        assert arrays["crop_ltrb_6x10"].dtype == np.float64


def test_a_second_start_neither_encodes_nor_loads_the_vae(cats: Path) -> None:
    assert fill(cats, to_disk=True)[1].loaded == [VAE]
    fake, parts, made = fill(cats, to_disk=True)
    assert fake.num_encoded == []
    assert parts.loaded == []
    assert len(shown(made)) == len(SIZES)


def test_a_file_that_is_deleted_during_the_run_is_not_taken_for_a_broken_image(cats: Path) -> None:
    made = fill(cats, to_disk=True)[2]
    next(cats.glob("im0_*.npz")).unlink()
    with pytest.raises(UserError, match=r"im0_\S+ is gone, which was there when the run began"):
        shown(made)


def test_mirrored_images_have_latents_of_their_own(cats: Path) -> None:
    made = fill(cats, flip_aug=True)[2]
    assert made.latents is not None
    plain, mirrored = made.latents(0, 0, False), made.latents(0, 0, True)
    assert (plain - mirrored).abs().max() > 0.05
    fill(cats, to_disk=True)
    assert fill(cats, to_disk=True, flip_aug=True)[0].num_encoded == [1] * 2 * len(SIZES)


def test_several_resolutions_share_a_file_and_neither_is_lost(cats: Path) -> None:
    fake, as_family, parts = family(cats.parent)
    fill_latents(training_set(cats), as_family, parts, to_disk=True)
    fill_latents(training_set(cats, resolutions=(96,)), as_family, parts, to_disk=True)
    fake.num_encoded.clear()
    fill_latents(training_set(cats, resolutions=(64, 96)), as_family, parts, to_disk=True)
    assert fake.num_encoded == []
    assert len(list(cats.glob("*.npz"))) == len(SIZES)


def test_two_images_of_the_same_name_do_not_share_a_file(tmp_path: Path) -> None:
    for suffix in (".png", ".jpg"):
        image(tmp_path / "twins" / f"twin{suffix}", (64, 64), "x")
    with pytest.raises(UserError, match=r"twin_0064x0064_.*npz cannot hold latents of two images"):
        fill(tmp_path / "twins", to_disk=True)
    _, _, made = fill(tmp_path / "twins")
    (_, one), (_, other) = shown(made)
    assert not torch.equal(one, other)


def test_batches_for_encoding_have_one_size(cats: Path) -> None:
    fake = fill(cats, batch_size=2)[0]
    assert sorted(fake.num_encoded) == [1, 2, 2]


class TestStaleness:
    def test_a_changed_image_is_encoded_again_and_alone(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        image(cats / "im1.png", (64, 64))
        os.utime(cats / "im1.png", ns=(1, 1))
        fake, _, _ = fill(cats, to_disk=True)
        assert fake.num_encoded == [1]

    def test_another_vae_makes_all_again(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        (cats.parent / "vae.safetensors").write_bytes(b"other" * 77)
        assert sum(fill(cats, to_disk=True)[0].num_encoded) == len(SIZES)

    def test_a_moved_vae_is_the_same(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        fake, as_family, parts = family(cats.parent)
        moved = cats.parent / "elsewhere.safetensors"
        fake.sources[VAE].rename(moved)
        fake.sources[VAE] = moved
        fill_latents(training_set(cats), as_family, parts, to_disk=True)
        assert fake.num_encoded == []

    def test_coarser_latents_are_made_again_and_finer_ones_serve(
        self, cats: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")

        def num_encoded(dtype: torch.dtype) -> int:
            fake, as_family, _ = family(cats.parent)
            parts = Parts(as_family, torch.device("cpu"), {VAE: dtype})
            fill_latents(training_set(cats), as_family, parts, to_disk=True)
            return sum(fake.num_encoded)

        dtypes = (torch.bfloat16, torch.float32, torch.bfloat16, torch.float16, torch.float32)
        assert [num_encoded(dtype) for dtype in dtypes] == [len(SIZES), len(SIZES), 0, 0, 0]
        num = len(SIZES)
        line = f"{num} latent caches are made again: {num} computed in bfloat16 instead of float32"
        assert caplog.text.count("made again") == caplog.text.count(line) == 1

    def test_a_changed_caption_or_an_untouched_start_makes_nothing_again(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        (cats / "im0.txt").write_text("other")
        assert fill(cats, to_disk=True)[0].num_encoded == []

    def test_a_damaged_file_is_named_and_made_again(
        self, cats: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(cats, to_disk=True)
        file = next(cats.glob("im3*.npz"))
        file.write_bytes(file.read_bytes()[:500])
        assert fill(cats, to_disk=True)[0].num_encoded == [1]
        assert f"{file} is damaged" in caplog.text

    def test_trusted_files_are_not_opened(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        next(cats.glob("im3*.npz")).write_bytes(b"?")
        assert fill(cats, to_disk=True, trust=True)[0].num_encoded == []

    def test_a_file_that_a_power_failure_emptied_is_made_again_even_if_files_are_trusted(
        self, cats: Path
    ) -> None:
        fill(cats, to_disk=True)
        for trust in (True, False):
            next(cats.glob("im3*.npz")).write_bytes(b"")
            assert fill(cats, to_disk=True, trust=trust)[0].num_encoded == [1]
        assert fill(cats, to_disk=True)[0].num_encoded == []


class TestFilesOfSdScripts:
    """They are the same without a record."""

    @pytest.fixture
    def foreign(self, cats: Path) -> Path:
        fill(cats, to_disk=True)
        forget_records(cats)
        return cats

    def test_are_used_and_said_so(self, foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert fill(foreign, to_disk=True)[0].num_encoded == []
        assert f"{len(SIZES)} latent caches without a record" in caplog.text

    def test_are_made_again_if_the_image_is_newer(self, foreign: Path) -> None:
        later = time.time() + 100
        os.utime(foreign / "im2.png", (later, later))
        assert fill(foreign, to_disk=True)[0].num_encoded == [1]

    def test_are_made_again_if_shapes_do_not_fit(self, foreign: Path) -> None:
        file = next(foreign.glob("im2*.npz"))
        with np.load(file) as arrays:
            wrong = {k: v[:2] if k.startswith("latents") else v for k, v in arrays.items()}
        np.savez(file, **wrong)
        assert fill(foreign, to_disk=True)[0].num_encoded == [1]

    @pytest.mark.parametrize(("lag_s", "expected"), [(-100, []), (100, [1])])
    def test_of_the_older_name_are_taken_over_unless_the_image_is_newer(
        self, cats: Path, lag_s: float, expected: list[int]
    ) -> None:
        _, old, parts = family(cats.parent)
        old.caches = CacheFormat("_fake.npz", "_fake_te.npz", is_scaled=False, is_sized=False, older=".npz")
        fill_latents(training_set(cats), old, parts, to_disk=True)
        names = {file.name: f"{file.stem.split('_')[0]}.npz" for file in cats.glob("*_fake.npz")}
        for name, older in names.items():
            with np.load(cats / name) as arrays:
                np.savez(cats / older, **{k: arrays[k] for k in arrays.files if not k.startswith("sfumato")})
            (cats / name).unlink()
        (cats / ".sfumato-index.sqlite").unlink(missing_ok=True)
        later = time.time() + lag_s
        os.utime(cats / "im2.png", (later, later))
        fake, as_family, parts = family(cats.parent)
        as_family.caches = old.caches
        fill_latents(training_set(cats), as_family, parts, to_disk=True)
        assert fake.num_encoded == expected
        assert {file.name for file in cats.glob("*_fake.npz")} == names.keys()

    def test_do_not_become_fresh_by_what_is_added_to_them(self, foreign: Path) -> None:
        now = time.time()
        for file in foreign.iterdir():
            age = 200 if file.suffix == ".npz" else 300
            os.utime(file, (now - age, now - age))
        os.utime(foreign / "im2.png", (now - 100, now - 100))
        _, as_family, parts = family(foreign.parent)
        fill_latents(training_set(foreign, resolutions=(96,)), as_family, parts, to_disk=True)
        assert fill(foreign, to_disk=True)[0].num_encoded == [1]


def test_an_image_that_does_not_decode_is_named_and_replaced(
    cats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = cats / "im1.png"
    broken.write_bytes(broken.read_bytes()[:600])
    for to_disk in (False, True):
        made = fill(cats, to_disk=to_disk)[2]
        assert f"{broken} could not be decoded" in caplog.text
        list(Loader(made)(made.batches(1)))
        assert made.skipped == {str(broken): 1}


def test_latents_that_are_not_finite_stop_the_run(cats: Path) -> None:
    fake, as_family, parts = family(cats.parent)
    fake.encode_image = lambda vae, pixels, rng: torch.full((1, 4, 8, 8), float("nan"))  # type: ignore[method-assign]
    with pytest.raises(UserError, match="is not finite; use --no_half_vae"):
        fill_latents(training_set(cats), as_family, parts)


def test_processes_share_the_files_between_them(cats: Path) -> None:
    counts = []
    for rank in range(2):
        fake, as_family, parts = family(cats.parent)
        fill_latents(training_set(cats), as_family, parts, to_disk=True, rank=rank, world=2)
        counts.append(sum(fake.num_encoded))
    assert sum(counts) == len(SIZES)
    assert fill(cats, to_disk=True)[0].num_encoded == []


def test_processes_make_the_same_latents_as_one(cats: Path) -> None:
    expected = shown(fill(cats)[2])
    for rank in range(2):
        _, as_family, parts = family(cats.parent)
        fill_latents(training_set(cats), as_family, parts, to_disk=True, rank=rank, world=2)
    for (_, first), (_, second) in zip(expected, shown(fill(cats, to_disk=True)[2]), strict=True):
        assert torch.equal(first, second)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("to_disk", [False, True])
def test_cached_batches_do_not_depend_on_the_number_of_workers(
    cats: Path, to_disk: bool, num_workers: int
) -> None:
    folder(cats.with_name("masks"), SIZES)
    options = {"flip_aug": True, "mask_dir": cats.with_name("masks"), "num_repeats": 3}
    made = dataset.read([plan(subset(cats, **options), batch_size=2)], seed=1)
    _, as_family, parts = family(cats.parent)
    fill_latents(made, as_family, parts, to_disk=to_disk)
    fill_texts(made, as_family, parts, ("clip", "t5"), to_disk=to_disk)
    alone, helped = Loader(made), Loader(made, num_workers=num_workers, persistent=True)
    for epoch in (1, 2):
        plans = made.batches(epoch)
        for one, other in zip(alone(plans), helped(plans), strict=True):
            assert (one.paths, one.captions) == (other.paths, other.captions)
            assert one.text.keys() == other.text.keys() == {"pooled", "t5_out", "t5_mask"}
            tensors = [one.latents, one.masks, one.crop_offsets, *one.text.values()]
            others = [other.latents, other.masks, other.crop_offsets, *other.text.values()]
            assert all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def test_a_killed_process_leaves_no_broken_file(tmp_path: Path) -> None:
    path = folder(tmp_path / "cats", [(64, 64)] * 6)
    script = (
        "import sys; from pathlib import Path; from tests.caching.test_latents import fill\n"
        "while True:\n"
        "    [file.unlink() for file in Path(sys.argv[1]).glob('*.npz')]\n"
        "    fill(Path(sys.argv[1]), to_disk=True); print('filled', flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.013)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    complete = list(path.glob("*.npz"))
    for file in complete:
        with np.load(file) as arrays:
            assert all(arrays[name] is not None for name in arrays.files)
    assert sum(fill(path, to_disk=True)[0].num_encoded) == 6 - len(complete)


def test_files_are_written_by_another_thread_while_more_is_encoded(
    cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_encoded, write, writers = Event(), store.write, set[str]()

    def slow(path: Path, arrays: Any) -> None:
        assert is_encoded.wait(10)  # the first is written only when the second has been encoded
        writers.add(current_thread().name)
        write(path, arrays)

    fake, as_family, parts = family(cats.parent)
    encode = fake.encode_image

    def noting(*given: Any) -> Any:
        if fake.num_encoded:
            is_encoded.set()
        return encode(*given)

    fake.encode_image = noting  # type: ignore[method-assign]
    monkeypatch.setattr(store, "write", slow)
    fill_latents(training_set(cats), as_family, parts, to_disk=True)
    assert len(writers) == 1
    assert current_thread().name not in writers
    assert len(list(cats.glob("*.npz"))) == len(SIZES)


def test_a_disk_that_is_full_behind_the_encoder_is_one_line(
    cats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    _, as_family, parts = family(cats.parent)
    monkeypatch.setattr(np, "savez", full)
    line = r"cats is full: im\d.*npz needs [\d,]+ bytes; free some space"
    with pytest.raises(UserError, match=line):
        fill_latents(training_set(cats), as_family, parts, to_disk=True)
    with pytest.raises(UserError, match=line):
        fill_texts(training_set(cats), as_family, parts, ("clip", "t5"), to_disk=True)
    assert not [*cats.glob("*.npz"), *cats.glob(".*.part")]
