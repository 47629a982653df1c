from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sfumato.caching.texts import fill_texts
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.data.captions.captions import CaptionSettings
from sfumato.errors import UserError
from sfumato.models.interface.parts import Parts
from tests.caching.fake import LENGTH, FakeFamily, family
from tests.caching.records import forget_records
from tests.data.folders import folder, plan, subset

ENCODERS = ("clip", "t5")


def training_set(path: Path, **options: object) -> TrainingSet:
    return dataset.read([plan(subset(path, **options))], seed=1)


def fill(
    path: Path, encoders: tuple[str, ...] = ENCODERS, mask: bool = False, **options: object
) -> tuple[FakeFamily, Parts, TrainingSet]:
    """Fill the caches of a folder as a fresh run would."""
    fake, as_family, parts = family(path.parent, mask=mask)
    made = training_set(path, captions=options.pop("captions", CaptionSettings()))
    fill_texts(made, as_family, parts, encoders, **options)
    return fake, parts, made


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    return folder(tmp_path / "cats", [(64, 64)] * 4)


@pytest.mark.parametrize("to_disk", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_hold_what_the_encoders_make_of_the_captions(
    cats: Path, to_disk: bool, num_workers: int
) -> None:
    fake, parts, made = fill(cats, to_disk=to_disk, batch_size=3)
    for batch in Loader(made, num_workers=num_workers)(made.batches(1)):
        expected = fake.encode_text({name: parts[name] for name in ENCODERS}, fake.tokenize(batch.captions))
        assert batch.text.keys() == {"pooled", "t5_out", "t5_mask"}
        assert all(torch.equal(batch.text[name], expected[name]) for name in expected)


def test_files_hold_outputs_and_the_extras_of_the_family(cats: Path) -> None:
    fill(cats, to_disk=True)
    with np.load(cats / "im0_fake_te.npz") as arrays:
        assert set(arrays.files) == {"pooled", "t5_out", "t5_mask", "txt_ids", "apply_mask", "sfumato_record"}
        assert arrays["txt_ids"].shape == (LENGTH, 3)
        assert arrays["apply_mask"].shape == ()
        assert arrays["t5_mask"].dtype == np.int64


def test_a_second_start_loads_no_encoder(cats: Path) -> None:
    assert fill(cats, to_disk=True)[1].loaded == ["clip", "t5"]
    assert fill(cats, to_disk=True)[1].loaded == []


def test_only_the_encoders_asked_for_are_cached(cats: Path) -> None:
    _, parts, made = fill(cats, ("t5",), to_disk=True)
    assert parts.loaded == ["t5"]
    assert made[made.batches(1)[0]].text.keys() == {"t5_out", "t5_mask"}
    assert fill(cats, to_disk=True)[1].loaded == ["clip", "t5"]
    assert fill(cats, ("t5",), to_disk=True)[1].loaded == []


def test_bfloat16_outputs_are_stored_as_float32_without_loss(cats: Path) -> None:
    _, as_family, _ = family(cats.parent)
    made, parts = training_set(cats), Parts(as_family, torch.device("cpu"), {"t5": torch.bfloat16})
    caption = made.sets[0].images.captions[0]
    in_memory = fill_texts(made, as_family, parts, ("t5",))(0, 0, caption)["t5_out"]
    on_disk = fill_texts(made, as_family, parts, ("t5",), to_disk=True)(0, 0, caption)["t5_out"]
    assert (in_memory.dtype, on_disk.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(in_memory.float(), on_disk)


def test_images_of_one_caption_share_its_outputs(tmp_path: Path) -> None:
    path = folder(tmp_path / "cats", [(64, 64)] * 3)
    for file in path.glob("*.txt"):
        file.write_text("same")
    _, as_family, parts = family(tmp_path)
    encoded: list[int] = []
    tokenize = as_family.tokenize
    as_family.tokenize = lambda captions: (encoded.append(len(captions)), tokenize(captions))[1]
    fill_texts(training_set(path), as_family, parts, ENCODERS)
    assert encoded == [1]


ENDLESS = [{"shuffle_caption": True}, {"caption_tag_dropout_rate": 0.1}, {"token_warmup_step": 5}]
LISTED = [{"caption_dropout_rate": 0.4}, {"enable_wildcard": True}, {"caption_dropout_every_n_epochs": 2}]


@pytest.mark.parametrize("setting", ENDLESS + LISTED, ids=lambda setting: next(iter(setting)))
@pytest.mark.parametrize("to_disk", [False, True])
def test_captions_that_vary_are_refused_with_setting_and_folder_unless_they_can_be_listed(
    cats: Path, setting: dict, to_disk: bool
) -> None:
    if setting in LISTED and not to_disk:
        fill(cats, captions=CaptionSettings(**setting))
        return
    with pytest.raises(UserError, match=f"{next(iter(setting))} makes the captions of .*cats vary") as caught:
        fill(cats, captions=CaptionSettings(**setting), to_disk=to_disk)
    assert ("keep them in memory" in str(caught.value)) == (setting in LISTED)


def test_every_caption_that_an_image_may_have_is_kept_in_memory(cats: Path) -> None:
    (cats / "im0.txt").write_text("a {red|blue} cat\na dog\na {{big}} {cat|dog|bird}")
    settings = CaptionSettings(
        enable_wildcard=True, caption_dropout_rate=0.3, caption_dropout_every_n_epochs=3
    )
    fake, parts, made = fill(cats, captions=settings)
    seen = set()
    for epoch in range(1, 25):
        for batch in map(made.__getitem__, made.batches(epoch)):
            tokens = fake.tokenize(batch.captions)
            expected = fake.encode_text({name: parts[name] for name in ENCODERS}, tokens)
            assert all(torch.equal(batch.text[name], expected[name]) for name in expected)
            seen |= {text for path, text in zip(batch.paths, batch.captions, strict=True) if "im0" in path}
    assert seen == {
        *("", "a dog", "a red cat", "a blue cat", "a {big} cat", "a {big} dog", "a {big} bird"),
    }


def test_too_many_variants_are_refused_with_their_image(cats: Path) -> None:
    (cats / "im2.txt").write_text("{a|b} " * 7)
    with pytest.raises(UserError, match=r"enable_wildcard makes more than 64 captions of that of .*im2.png"):
        fill(cats, captions=CaptionSettings(enable_wildcard=True))


class TestStaleness:
    def test_a_changed_caption_is_encoded_again_and_alone(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        before = {file: file.stat().st_mtime_ns for file in cats.glob("*.npz")}
        (cats / "im2.txt").write_text("another cat")
        fill(cats, to_disk=True)
        changed = [file.name for file, when in before.items() if file.stat().st_mtime_ns != when]
        assert changed == ["im2_fake_te.npz"]

    def test_settings_that_change_captions_make_all_again(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        prefixed = CaptionSettings(caption_prefix="sks")
        assert fill(cats, to_disk=True, captions=prefixed)[1].loaded == ["clip", "t5"]

    def test_another_encoder_makes_all_again(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        (cats.parent / "t5.safetensors").write_bytes(b"other")
        assert fill(cats, to_disk=True)[1].loaded == ["clip", "t5"]
        assert fill(cats, ("clip",), to_disk=True)[1].loaded == []

    def test_coarser_outputs_are_made_again_and_finer_ones_serve(
        self, cats: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO")

        def loaded(dtype: torch.dtype) -> list[str]:
            _, as_family, _ = family(cats.parent)
            parts = Parts(as_family, torch.device("cpu"), {"t5": dtype})
            fill_texts(training_set(cats), as_family, parts, ("t5",), to_disk=True)
            return parts.loaded

        dtypes = (torch.bfloat16, torch.float32, torch.float16)
        assert [loaded(dtype) for dtype in dtypes] == [["t5"], ["t5"], []]
        assert "4 text caches are made again: 4 computed in bfloat16 instead of float32" in caplog.text

    def test_an_output_of_another_shape_than_when_it_was_made_is_made_again(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        file = cats / "im1_fake_te.npz"
        with np.load(file) as arrays:
            kept = {name: arrays[name] for name in arrays.files}
        np.savez(file, **{**kept, "pooled": kept["pooled"][:-1]})
        assert fill(cats, to_disk=True)[1].loaded == ["clip", "t5"]
        assert fill(cats, to_disk=True)[1].loaded == []

    def test_another_option_of_the_family_makes_all_again(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        assert fill(cats, to_disk=True, mask=True)[1].loaded == ["clip", "t5"]

    def test_a_changed_image_does_not(self, cats: Path) -> None:
        fill(cats, to_disk=True)
        later = time.time() + 100
        os.utime(cats / "im2.png", (later, later))
        assert fill(cats, to_disk=True)[1].loaded == []

    def test_a_damaged_file_is_named_and_made_again(
        self, cats: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(cats, to_disk=True)
        (cats / "im1_fake_te.npz").write_bytes(b"PK\x03\x04 nothing")
        assert fill(cats, to_disk=True)[1].loaded == ["clip", "t5"]
        assert "im1_fake_te.npz is damaged" in caplog.text

    @pytest.mark.parametrize("trust", [False, True])
    def test_a_file_that_a_power_failure_emptied_is_made_again(self, trust: bool, cats: Path) -> None:
        fill(cats, to_disk=True)
        (cats / "im1_fake_te.npz").write_bytes(b"")
        assert fill(cats, to_disk=True, trust=trust)[1].loaded == ["clip", "t5"]
        assert fill(cats, to_disk=True, trust=trust)[1].loaded == []


class TestFilesOfSdScripts:
    """They are the same without a record."""

    @pytest.fixture
    def foreign(self, cats: Path) -> Path:
        fill(cats, to_disk=True)
        forget_records(cats)
        return cats

    def test_are_used_and_said_so(self, foreign: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert fill(foreign, to_disk=True)[1].loaded == []
        assert "4 text caches without a record" in caplog.text

    def test_are_made_again_if_a_caption_is_newer(self, foreign: Path) -> None:
        later = time.time() + 100
        os.utime(foreign / "im2.txt", (later, later))
        assert fill(foreign, to_disk=True)[1].loaded == ["clip", "t5"]

    def test_are_made_again_if_an_option_differs(self, foreign: Path) -> None:
        assert fill(foreign, to_disk=True, mask=True)[1].loaded == ["clip", "t5"]

    def test_are_made_again_if_the_length_differs(self, foreign: Path) -> None:
        with np.load(foreign / "im0_fake_te.npz") as arrays:
            longer = {k: np.concatenate([v, v]) if k == "t5_out" else v for k, v in arrays.items()}
        np.savez(foreign / "im0_fake_te.npz", **longer)
        assert fill(foreign, to_disk=True)[1].loaded == ["clip", "t5"]


def test_one_file_cannot_hold_two_captions(cats: Path) -> None:
    _, as_family, parts = family(cats.parent)
    prefixed = CaptionSettings(caption_prefix="p")
    made = dataset.read([plan(subset(cats)), plan(subset(cats, captions=prefixed))], seed=1)
    with pytest.raises(UserError, match="cannot hold two captions"):
        fill_texts(made, as_family, parts, ENCODERS, to_disk=True)
    caption = f"p {made.sets[0].images.captions[0]}"
    assert fill_texts(made, as_family, parts, ENCODERS)(1, 0, caption)["t5_out"].shape == (LENGTH, 5)


def test_processes_share_the_files_between_them(cats: Path) -> None:
    for rank in range(2):
        _, as_family, parts = family(cats.parent)
        fill_texts(training_set(cats), as_family, parts, ENCODERS, to_disk=True, rank=rank, world=2)
    assert fill(cats, to_disk=True)[1].loaded == []
