from __future__ import annotations

import dataclasses
import json
import multiprocessing
import pickle
import random
from collections import Counter
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from sfumato.data.batches import dataset, loader, statistics
from sfumato.data.batches.collate import Batch, Sample, collate
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images.buckets import Buckets, round_limits
from sfumato.errors import UserError
from tests.data.folders import folder, image, pixels, plan, subset
from tests.golden.derived import settings

FIXTURE = settings("c_dataset_seed")
SIZES = [(64, 64), (64, 64), (64, 64), (96, 48), (96, 48), (48, 96), (200, 100)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recorded")
    for name, files in FIXTURE["files"].items():
        (root / name).mkdir()
        for file in files:
            path = root / name / file["file"]
            noise = pixels(file["image"].removeprefix("img:"), *file["size_wh"], file["channels"])
            Image.fromarray(noise).save(path)
            if file["caption_first_line"] is not None:
                path.with_suffix(".txt").write_text(
                    f"{file['caption_first_line']}\n{file['caption_second_line']}\n"
                )
    return root


def recorded_plan(root: Path, config: dict) -> DatasetPlan:
    names = {field.name for field in dataclasses.fields(CaptionSettings)}
    options = {k: v for k, v in config["sub"].items() if k not in names}
    captions = CaptionSettings(**{k: v for k, v in config["sub"].items() if k in names})
    subsets = [subset(root / "train", captions=captions, **options)]
    if config["reg"]:
        subsets.append(subset(root / "reg", is_reg=True, **config["reg"]))
    limits = round_limits(config["mn"], config["mx"], config["step"])
    buckets = Buckets(tuple(config["reso"]), *limits, config["step"], config["nu"], config["enable_bucket"])
    return DatasetPlan(tuple(subsets), buckets, config["bs"], prior_loss_weight=config["prior"])


@pytest.mark.parametrize("case", FIXTURE["cases"], ids=lambda case: case["id"])
class TestAgainstSdScripts:
    def test_counts_buckets_and_tags_are_equal(self, case: dict, recorded: Path) -> None:
        training_set = dataset.read([recorded_plan(recorded, case["config"])], seed=1)
        (description,) = training_set.describe()
        assert description["tag_frequency"] == case["tag_frequency"]
        assert training_set.num_train_images == case["num_train_images"]
        assert training_set.num_reg_images == case["num_reg_images"]
        assert training_set.num_batches == case["length"]
        info, expected = description["bucket_info"], case["bucket_info"]
        assert (info or {}).get("buckets") == (expected or {}).get("buckets")
        if expected:
            assert info["mean_img_ar_error"] == pytest.approx(expected["mean_img_ar_error"], abs=1e-12)

    def test_repeats_of_every_image_are_equal(self, case: dict, recorded: Path) -> None:
        (image_set,) = dataset.read([recorded_plan(recorded, case["config"])], seed=1).sets
        repeats = {name(p.path): p.num_repeats for p in image_set.images}
        assert repeats == case["reg_repeats"]

    def test_every_epoch_shows_the_same_images_with_the_same_framing(
        self, case: dict, recorded: Path
    ) -> None:
        training_set = dataset.read([recorded_plan(recorded, case["config"])], seed=1)
        for epoch in case["epochs"]:
            batches = [training_set[p] for p in training_set.batches(epoch["epoch"])]
            ours = Counter(shown for batch in batches for shown in of_batch(batch, case))
            assert ours == Counter(shown for item in epoch["items"] for shown in of_item(item, case))
            assert Counter(map(len, batches)) == Counter(len(item["files"]) for item in epoch["items"])


# Mirroring draws otherwise than sd-scripts; windows at random tell where they are, not where the middle is.
VARIED = {"flip_aug", "random_crop"}


def of_batch(batch: Batch, case: dict) -> list[tuple]:
    assert batch.pixels is not None
    framing = [batch.original_sizes, batch.target_sizes]
    if not VARIED & case["config"]["sub"].keys():
        framing.append(batch.crop_offsets)
    if not case["bucket_info"]:
        # Without buckets sd-scripts records the size after cropping; here images are resized to the bucket.
        framing = [batch.target_sizes]
    shape = tuple(batch.pixels.shape[1:])
    sizes = [tuple(tuple(rows[i].tolist()) for rows in framing) for i in range(len(batch))]
    weights = batch.loss_weights.tolist()
    return [(name(path), shape, *row) for path, *row in zip(batch.paths, sizes, weights, strict=True)]


def of_item(item: dict, case: dict) -> list[tuple]:
    keys = ["original_sizes_hw", "target_sizes_hw"]
    if not VARIED & case["config"]["sub"].keys():
        keys.append("crop_top_lefts")
    if not case["bucket_info"]:
        keys = ["target_sizes_hw"]
    shape = tuple(item["image_shape"][1:])
    sizes = [tuple(tuple(item[key][i]) for key in keys) for i in range(len(item["files"]))]
    return [
        (file, shape, *row) for file, *row in zip(item["files"], sizes, item["loss_weights"], strict=True)
    ]


def name(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


@pytest.fixture
def varied(tmp_path: Path) -> TrainingSet:
    """Two data sets on one folder; flips, shuffled captions, repeats."""
    path = folder(tmp_path / "cat", SIZES)
    shuffled = subset(path, num_repeats=2, flip_aug=True, captions=CaptionSettings(shuffle_caption=True))
    return dataset.read([plan(shuffled), plan(subset(path), resolution=96, batch_size=3)], seed=7)


def contents(batches: list[Batch]) -> list[tuple]:
    return [(b.paths, b.captions, b.crop_offsets.tolist(), b.pixels.double().sum().item()) for b in batches]


@pytest.fixture
def augmented(tmp_path: Path) -> TrainingSet:
    """One data set with everything that varies: three kinds of subsets, of which two have masks."""
    path = folder(tmp_path / "cat", SIZES)
    folder(tmp_path / "masks", SIZES)
    folder(tmp_path / "dog", [])
    image(tmp_path / "dog" / "x_40_30_20_20.png", (80, 64), "dog")
    everything = {"flip_aug": True, "color_aug": True, "random_crop": True}
    subsets = [
        subset(path, **everything, alpha_mask=True),
        subset(path, **everything, mask_dir=tmp_path / "masks"),
        subset(tmp_path / "dog", **everything, face_crop_aug_range=(1.5, 3.0), num_repeats=4),
    ]
    return dataset.read([plan(*subsets, batch_size=4)], seed=3)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("num_workers", [1, 4])
def test_augmented_batches_do_not_depend_on_the_number_of_workers(
    augmented: TrainingSet, num_workers: int
) -> None:
    alone, helped = Loader(augmented), Loader(augmented, num_workers=num_workers)
    for epoch in (1, 2):
        plans = augmented.batches(epoch)
        for one, other in zip(alone(plans), helped(plans), strict=True):
            assert one.paths == other.paths
            assert torch.equal(one.crop_offsets, other.crop_offsets)
            assert torch.equal(one.pixels, other.pixels)
            assert (one.masks is None) == (other.masks is None)
            assert one.masks is None or torch.equal(one.masks, other.masks)


def test_every_epoch_varies_images_anew(augmented: TrainingSet) -> None:
    def shown(epoch: int) -> set[tuple]:
        batches = [augmented[p] for p in augmented.batches(epoch)]
        return {(path, p.sum().item()) for b in batches for path, p in zip(b.paths, b.pixels, strict=True)}

    assert len(shown(1) & shown(2)) < 0.5 * len(shown(1))
    assert shown(1) == shown(1)


def test_images_without_a_mask_count_fully_beside_images_with_one(augmented: TrainingSet) -> None:
    found: dict[str, list[float]] = {"cat": [], "dog": []}
    for batch in (augmented[p] for epoch in (1, 2, 3) for p in augmented.batches(epoch)):
        if batch.masks is not None:
            assert batch.masks.shape == (len(batch), 1, *batch.pixels.shape[2:])
            for path, mask in zip(batch.paths, batch.masks, strict=True):
                found[Path(path).parent.name].append(mask.mean().item())
    assert set(found["dog"]) == {1.0}
    # Half of the cats have masks of noise, the others are opaque.
    assert {round(mean, 1) for mean in found["cat"]} == {0.5, 1.0}


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on a small machine
@pytest.mark.parametrize("num_workers", [1, 4])
def test_batches_do_not_depend_on_the_number_of_workers(varied: TrainingSet, num_workers: int) -> None:
    plans = varied.batches(1)
    alone, helped = Loader(varied), Loader(varied, num_workers=num_workers, persistent=True)
    for _ in range(2):
        assert contents(list(helped(plans))) == contents(list(alone(plans)))


@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_workers_that_cannot_be_forked_are_kept_and_make_the_same_batches(
    system: str, varied: TrainingSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "sys", SimpleNamespace(platform=system))
    helped = Loader(varied, num_workers=1)
    assert helped._loader.multiprocessing_context.get_start_method() == "spawn"
    if system == "darwin":  # the same from here on, and it takes seconds
        return
    before, seen = multiprocessing.active_children(), []
    for epoch in (1, 2):
        plans = varied.batches(epoch)[:2]
        assert contents(list(helped(plans))) == contents(list(Loader(varied)(plans)))
        seen.append([process.pid for process in multiprocessing.active_children() if process not in before])
    assert seen[0] == seen[1]
    assert len(seen[0]) == 1


def test_a_resumed_epoch_continues_with_the_same_batches(varied: TrainingSet) -> None:
    loader, plans = Loader(varied), varied.batches(2)
    assert contents(list(loader(plans))[5:]) == contents(list(loader(plans[5:])))


def test_loading_leaves_the_global_generators_alone(varied: TrainingSet) -> None:
    torch.manual_seed(3)
    random.seed(3)
    before = (torch.get_rng_state(), random.getstate())
    list(Loader(varied)(varied.batches(1)))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_batches_never_mix_buckets_or_data_sets_and_show_everything_once(varied: TrainingSet) -> None:
    plans = varied.batches(1)
    for p in plans:
        buckets = {varied.sets[p.dataset].fit(item.image).bucket for item in p.items}
        assert len(buckets) == 1
        assert len(p.items) <= varied.sets[p.dataset].plan.batch_size
    shown = Counter((p.dataset, item) for p in plans for item in p.items)
    assert set(shown.values()) == {1}
    assert len(shown) == 2 * len(SIZES) + len(SIZES)
    assert len(plans) == varied.num_batches


def test_order_depends_on_seed_and_epoch_alone(varied: TrainingSet) -> None:
    again = dataclasses.replace(varied)
    other = dataclasses.replace(varied, seed=8)
    assert varied.batches(3) == again.batches(3)
    assert varied.batches(3) != other.batches(3)
    assert [p.items for p in varied.batches(3)] != [p.items for p in varied.batches(4)]


def test_data_sets_are_mixed_over_the_epoch(varied: TrainingSet) -> None:
    order = [p.dataset for p in varied.batches(1)]
    assert order != sorted(order)
    assert set(order) == {0, 1}


def test_steps_count_groups_of_batches_over_epochs(varied: TrainingSet) -> None:
    num = varied.num_batches
    per_epoch = -(-num // 4)
    assert [p.step for p in varied.batches(1, num_per_step=4)] == [i // 4 for i in range(num)]
    assert varied.batches(3, num_per_step=4)[0].step == 2 * per_epoch


def test_a_flipped_sample_is_the_mirror_of_the_other(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(80, 64)])
    training_set = dataset.read([plan(subset(path, flip_aug=True))], seed=1)
    shown = [training_set[training_set.batches(epoch)[0]].pixels for epoch in range(1, 20)]
    mirrored = [pixels for pixels in shown if not torch.equal(pixels, shown[0])]
    assert 0 < len(mirrored) < len(shown)
    assert all(torch.equal(pixels.flip(-1), shown[0]) for pixels in mirrored)


def test_repeats_of_one_image_draw_different_captions(tmp_path: Path) -> None:
    path = tmp_path / "cat"
    image(path / "x.png", (64, 64), ", ".join("abcdefgh"))
    shuffled = subset(path, num_repeats=8, captions=CaptionSettings(shuffle_caption=True))
    training_set = dataset.read([plan(shuffled, batch_size=8)], seed=1)
    assert len(set(training_set[training_set.batches(1)[0]].captions)) > 5


def test_every_nth_epoch_counts_from_one(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(64, 64)])
    dropped = subset(path, captions=CaptionSettings(caption_dropout_every_n_epochs=2))
    training_set = dataset.read([plan(dropped)], seed=1)
    captions = [training_set[training_set.batches(epoch)[0]].captions[0] for epoch in (1, 2, 3, 4)]
    assert captions == ["a0, b0, c0, d0", "", "a0, b0, c0, d0", ""]


def test_an_image_that_decodes_badly_is_replaced_counted_and_named(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(64, 64)] * 4)
    broken = path / "im2.png"
    broken.write_bytes(broken.read_bytes()[:600])
    training_set = dataset.read([plan(subset(path))], seed=1)
    for num_workers in (0, 1):
        training_set.skipped.clear()
        batches = list(Loader(training_set, num_workers=num_workers)(training_set.batches(1)))
        assert [len(batch) for batch in batches] == [2, 2]
        assert training_set.skipped == {str(broken): 1}
        assert all(str(broken) not in batch.paths for batch in batches)


def test_a_bucket_of_nothing_but_broken_images_stops_with_one_line(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(64, 64)] * 2)
    for file in path.glob("*.png"):
        file.write_bytes(file.read_bytes()[:600])
    training_set = dataset.read([plan(subset(path))], seed=1)
    with pytest.raises(UserError, match=r"every image of bucket 64x64 is broken; replace .*im\d.png"):
        training_set[training_set.batches(1)[0]]


def test_regularisation_images_carry_the_prior_weight_and_sets_their_multiplier(tmp_path: Path) -> None:
    train, reg = folder(tmp_path / "cat", [(64, 64)] * 2), folder(tmp_path / "reg", [(64, 64)])
    subsets = (subset(train), subset(reg, is_reg=True))
    training_set = dataset.read([plan(*subsets, prior_loss_weight=0.25, network_multiplier=0.5)], seed=1)
    batches = [training_set[p] for p in training_set.batches(1)]
    weights = {path: w for b in batches for path, w in zip(b.paths, b.loss_weights.tolist(), strict=True)}
    assert weights[str(reg / "im0.png")] == 0.25
    assert weights[str(train / "im0.png")] == 1
    assert {m for b in batches for m in b.network_multipliers.tolist()} == {0.5}


def test_a_batch_carries_the_notes_about_each_image_s_subset(tmp_path: Path) -> None:
    noted = subset(folder(tmp_path / "cat", [(64, 64)]), custom_attributes={"source": "x"})
    training_set = dataset.read([plan(noted, subset(folder(tmp_path / "dog", [(64, 64)])))], seed=1)
    (batch,) = Loader(training_set)(training_set.batches(1))
    notes = {Path(p).parent.name: a for p, a in zip(batch.paths, batch.custom_attributes, strict=True)}
    assert notes == {"cat": {"source": "x"}, "dog": {}}


def test_a_batch_moves_as_a_whole(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(64, 64)])
    training_set = dataset.read([plan(subset(path))], seed=1)
    training_set.texts = lambda dataset, image, caption: {"t5_out": torch.zeros(3, 4)}
    batch = training_set[training_set.batches(1)[0]].to("meta")
    assert {batch.pixels.device.type, batch.loss_weights.device.type, batch.text["t5_out"].device.type} == {
        "meta"
    }
    assert batch.captions == ["a0, b0, c0, d0"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [2, 512])
def test_a_batch_is_the_same_on_the_other_side_of_a_worker(side: int, dtype: torch.dtype) -> None:
    text = {"t5_out": torch.randn(3, 4).to(dtype), "t5_mask": torch.ones(3, dtype=torch.int64)}
    sample = Sample("x", "words", (1, 2), (3, 4), (5, 6), torch.randn(4, side, side).to(dtype), text=text)
    batch = collate([sample] * 2)
    received = pickle.loads(ForkingPickler.dumps(batch))
    for field in dataclasses.fields(batch):
        sent, got = getattr(batch, field.name), getattr(received, field.name)
        if isinstance(sent, dict):
            assert all(torch.equal(got[name], sent[name]) for name in sent)
        else:
            assert torch.equal(sent, got) if isinstance(sent, torch.Tensor) else sent == got
    received.loss_weights.zero_()  # writable: torch warns of arrays that are not


def test_samples_with_and_without_latents_do_not_make_a_batch() -> None:
    sample = Sample("x", "", (1, 1), (0, 0), (1, 1), latents=torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="some do not"):
        collate([sample, dataclasses.replace(sample, latents=None)])


def test_the_record_of_a_data_set_has_sd_scripts_keys_in_order(tmp_path: Path) -> None:
    training_set = dataset.read([plan(subset(folder(tmp_path / "3_cat", SIZES), num_repeats=3))], seed=1)
    (record,) = training_set.describe()
    assert list(record) == [
        *("is_dreambooth", "batch_size_per_device", "num_train_images", "num_reg_images", "resolution"),
        *("enable_bucket", "min_bucket_reso", "max_bucket_reso", "tag_frequency", "bucket_info", "subsets"),
    ]
    assert list(record["subsets"][0]) == [
        *(
            "img_count",
            "num_repeats",
            "color_aug",
            "flip_aug",
            "random_crop",
            "shuffle_caption",
            "keep_tokens",
        ),
        *(
            "keep_tokens_separator",
            "secondary_separator",
            "enable_wildcard",
            "caption_prefix",
            "caption_suffix",
        ),
        *("image_dir", "class_tokens", "is_reg"),
    ]
    assert json.loads(json.dumps(record))["subsets"][0]["image_dir"] == "3_cat"


def test_an_epoch_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    many = subset(folder(tmp_path / "3_cat", SIZES), num_repeats=100_000_000)
    with pytest.raises(
        UserError, match=r"would show 700,000,000 images.*num_repeats of .*3_cat is 100000000"
    ):
        dataset.read([plan(many)], seed=1)


def test_folders_of_the_same_name_are_numbered(tmp_path: Path) -> None:
    first, second = folder(tmp_path / "a" / "cat", SIZES), folder(tmp_path / "b" / "cat", SIZES[:2])
    reg = SubsetPlan(folder(tmp_path / "reg", SIZES[:1]), 4, class_tokens="cat", is_reg=True)
    training_set = dataset.read([plan(subset(first), reg), plan(subset(second, num_repeats=2))], seed=1)
    assert statistics.folders(training_set.sets, is_reg=False) == {
        "cat": {"n_repeats": 1, "img_count": 7},
        "cat (2)": {"n_repeats": 2, "img_count": 2},
    }
    reg_dirs = statistics.folders(training_set.sets, is_reg=True)
    assert reg_dirs == {"reg": {"n_repeats": 4, "img_count": 1}}
    assert training_set.tag_frequency()["cat"]["a6"] == 1
    assert list(training_set.tag_frequency()) == ["cat", "reg"]


def test_a_batch_that_a_bucket_cannot_fill_is_said(tmp_path: Path) -> None:
    folder(tmp_path, [(64, 64), (64, 64), (96, 48)])
    line = "buckets hold fewer images, repeats counted (bucket {} holds {}); their batches are smaller"
    said = {size: read(tmp_path, batch_size=size).short_batches() for size in (1, 2, 3)}
    assert said[1] == []
    assert said[2] == [f"train_batch_size is 2, and 1 of 2 {line.format('80x48', 1)}"]
    assert said[3] == [f"train_batch_size is 3, and 2 of 2 {line.format('80x48', 1)}"]


def read(path: Path, **options: int) -> TrainingSet:
    return dataset.read([plan(subset(path), **options)], seed=0)
