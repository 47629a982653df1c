"""Metadata files and copies of images are what sd-scripts' preparation tools write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.preparation import BucketingConfig
from sfumato.data.batches import dataset
from sfumato.data.config import blueprint
from sfumato.data.images.images import read_size
from sfumato.data.images.resizing import resize
from sfumato.data.sources import index
from sfumato.errors import UserError
from sfumato.models.components.autoencoder import diffusers_names
from sfumato.sampling.hires.latent_network import LatentNetwork
from sfumato.tools.preparation.bucketing import prepared
from sfumato.tools.preparation.cleaning import clean_caption, clean_tags
from sfumato.tools.preparation.shrinking import fit_area
from tests import tiny


def texts(folder: Path, suffix: str, **by_stem: str) -> None:
    for stem, text in by_stem.items():
        (folder / f"{stem}{suffix}").write_text(text, encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.pictures(tmp_path / "data", 2, (16, 16), captions=None)
    texts(tmp_path / "data", ".caption", picture_00=" ein süßer Hund \n", picture_01="two\nlines")
    texts(tmp_path / "data", ".txt", picture_00="1girl, solo")
    return tmp_path / "data"


def test_captions_and_tags_are_gathered_into_one_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "made" / "meta.json"
    assert script("finetune/merge_captions_to_metadata", [str(folder), str(out)]) == 0
    assert script("finetune/merge_dd_tags_to_metadata", [str(folder), str(out)]) == 0
    expected = {
        "picture_00": {"caption": "ein süßer Hund", "tags": "1girl, solo"},
        "picture_01": {"caption": "two\nlines"},
    }
    assert out.read_text("utf-8") == json.dumps(expected, indent=2, ensure_ascii=False)
    assert [path.name for path in out.parent.iterdir()] == ["meta.json"]


def test_records_are_added_to_those_of_another_file(folder: Path, tmp_path: Path) -> None:
    old, out = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps({"picture_00": {"caption": "old", "score": 3}, "gone": {"tags": "x"}}))
    out.write_text("{}")
    argv = [str(folder), str(out), "--in_json", str(old), "--caption_extention", "caption"]
    assert main(["merge-captions", *argv]) == 0
    assert read(out) == {
        "picture_00": {"caption": "ein süßer Hund", "score": 3},
        "gone": {"tags": "x"},
        "picture_01": {"caption": "two\nlines"},
    }


def test_folders_below_are_taken_in_by_their_paths(folder: Path, tmp_path: Path) -> None:
    tiny.pictures(folder / "below", 1, (16, 16), captions=".caption")
    out = tmp_path / "meta.json"
    assert main(["merge-captions", str(folder), str(out), "--full_path", "--recursive"]) == 0
    assert list(read(out)) == [
        str(folder / name) for name in ("below/picture_00.png", "picture_00.png", "picture_01.png")
    ]


def test_what_was_read_is_shown_on_request(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, cleaned = str(tmp_path / "meta.json"), str(tmp_path / "clean.json")
    texts(folder, ".txt", picture_00="long_hair")
    assert main(["merge-tags", str(folder), out, "--debug"]) == 0
    assert main(["clean-captions", out, cleaned, "--debug"]) == 0
    log = capfd.readouterr().err
    assert "picture_00.png: long_hair" in log
    assert "1 of 2 images without .txt file" in log
    assert "picture_00: long_hair -> long hair" in log


@pytest.mark.parametrize(
    ("tags", "cleaned"),
    [
        ("1girl, long_hair, ^_^, blue_eyes", "1girl, long hair, ^_^, blue eyes"),
        ("1girl, smile, rating:safe, score", "1girl, smile"),
        ("shirt, white_shirt, hair ornament, blue shirt", "white shirt, hair ornament, blue shirt"),
        ("2girls, blue eyes, red eyes, smile", "2girls, smile"),
        ("2girls, blue eyes, smile", "2girls, blue eyes, smile"),
        ("1girl, blue eyes, red eyes", "1girl, blue eyes, red eyes"),
        ("2boys, long hair, short hair, blonde hair", "2boys, blonde hair"),
        ("2boys, long hair, blonde hair, black hair", "2boys, long hair"),
        ("2girls, bob cut, hime cut, ponytail, single hair bun", "2girls"),
        ("multiple girls, long sleeves, sleeveless, hat", "multiple girls, hat"),
        ("", ""),
    ],
)
def test_tags_are_cleaned(tags: str, cleaned: str) -> None:
    assert clean_tags(tags) == cleaned


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("a woman with a dog", "a girl with a dog"),
        ("two women and a lady", "two girls and a girl"),
        ("an anime cartoon young female person", "an girl"),
        ("a cartoon character and a cartoon boy", "a character and a boy"),
        ("a young anime girl in a cartoon style", "a girl in a cartoon style"),
        ("a snowman", "a snowman"),
    ],
)
def test_captions_are_cleaned_until_nothing_changes(caption: str, cleaned: str) -> None:
    assert clean_caption(caption) == cleaned
    assert clean_caption(cleaned) == cleaned


def test_cleaning_leaves_alone_what_it_does_not_know(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "in.json", tmp_path / "out.json"
    source.write_text(
        json.dumps({"ä": {"tags": "a_b", "train_resolution": [64, 64]}, "c": {"caption": "lady"}})
    )
    assert script("finetune/clean_captions_and_tags", [str(source), str(out)]) == 0
    assert read(out) == {"ä": {"tags": "a b", "train_resolution": [64, 64]}, "c": {"caption": "girl"}}
    log = capfd.readouterr().err
    assert "1 of 2 images without caption, the first is ä" in log
    assert "1 of 2 images without tags, the first is c" in log


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["merge-captions", "data", "o.json", "--recursive"], "--recursive needs --full_path"),
        (
            ["merge-captions", "data", "o.json", "--caption_extension", ".cap"],
            "no image in data has",
        ),
        (["merge-captions", "data", "o.json", "--in_json", "no.json"], "--in_json no.json cannot be read"),
        (["merge-captions", "data", "o.json", "--in_json", "list.json"], "is no metadata file"),
        (["merge-captions", "empty", "o.json"], "empty has no images"),
        (["merge-tags", "nowhere", "o.json"], "nowhere cannot be read"),
        (["clean-captions", "bad.json", "o.json"], "IN_JSON bad.json is not valid JSON"),
        (["clean-captions", "bad.json"], "required: out_json"),
        (["resize-images", "nowhere", "o"], "nowhere cannot be read"),
        (["resize-images", "empty", "o"], "empty has no images"),
        (["resize-images", "data", "o", "--max_resolution", "512"], "--max_resolution has '512'"),
        (["resize-images", "data", "o", "--divisible_by", "0"], "--divisible_by is 0"),
        (["resize-images", "broken", "o"], "no image in broken can be read"),
        (["prepare-buckets", "data", "list.json", "o.json", "no.ckpt"], "MODEL_NAME_OR_PATH is no.ckpt"),
        (
            ["prepare-buckets", "data", "list.json", "o.json", "m", "--bucket_reso_steps", "4"],
            "use 8 or more",
        ),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    argv: list[str],
    message: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    assert main(argv) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert not (tmp_path / "o.json").exists()
    assert not list((tmp_path / "o").glob("*"))


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        path.name: read_size(path) for path in sorted(folder.iterdir()) if path.suffix in (".jpg", ".png")
    }


def test_copies_are_made_in_every_size_and_other_files_copied(tmp_path: Path) -> None:
    source, target = tmp_path / "from", tmp_path / "to"
    tiny.pictures(source, 1, (96, 48))
    tiny.pictures(source / "below", 1)
    (source / "notes.md").write_text("x")
    (source / index.NAME).write_text("what training found out about these files, not their copies")
    argv = [str(source), str(target), "--max_resolution", "64x64,32x32,16x16", "--divisible_by", "4"]
    assert script("tools/resize_images_to_resolution", [*argv, "--copy_associated_files"]) == 0
    assert sizes(target) == {
        "picture_00+16x16.jpg": (20, 8),
        "picture_00+32x32.jpg": (44, 20),
        "picture_00+64x64.jpg": (88, 44),
    }
    others = sorted(path.name for path in target.iterdir() if path.suffix != ".jpg")
    copies = [f"picture_00+{size}.txt" for size in ("16x16", "32x32", "64x64")]
    assert others == ["notes.md", *copies, "picture_00.txt"]
    assert (target / copies[0]).read_text() == (source / "picture_00.txt").read_text()


@pytest.mark.parametrize("interpolation", ["area", "cubic", "lanczos4"])
def test_pixels_are_those_of_the_filter_that_is_asked_for(interpolation: str, tmp_path: Path) -> None:
    (path,) = tiny.pictures(tmp_path / "from", 1, (64, 32))
    argv = [str(path.parent), str(tmp_path / "to"), "--max_resolution", "16x32,8x16"]
    assert main(["resize-images", *argv, "--interpolation", interpolation, "--save_as_png"]) == 0
    image = Image.open(path).convert("RGB")
    for text, size in (("16x32", (32, 16)), ("8x16", (16, 8))):
        image = resize(image, size, "lanczos" if interpolation == "lanczos4" else interpolation)
        found = np.asarray(Image.open(tmp_path / "to" / f"picture_00+{text}.png"))
        assert np.array_equal(found, np.asarray(image))


def test_copies_in_the_same_folder_leave_its_files_as_they_are(tmp_path: Path) -> None:
    (path,) = tiny.pictures(tmp_path, 1, (64, 64))
    caption = path.with_suffix(".txt").read_text()
    assert main(["resize-images", str(tmp_path), str(tmp_path), "--max_resolution", "32x32"]) == 0
    assert sizes(tmp_path) == {"picture_00+32x32.jpg": (32, 32), "picture_00.png": (64, 64)}
    assert path.with_suffix(".txt").read_text() == caption


@pytest.mark.parametrize(
    ("size", "limit", "divisible_by", "expected"),
    [
        ((100, 100), (200, 200), 1, ((100, 100), (100, 100))),
        ((1000, 500), (512, 512), 1, ((724, 362), (724, 362))),
        ((1000, 500), (512, 512), 64, ((724, 362), (704, 320))),
        ((1024, 1024), (512, 512), 8, ((512, 512), (512, 512))),
    ],
)
def test_copies_do_not_exceed_the_area(
    size: tuple[int, int], limit: tuple[int, int], divisible_by: int, expected: object
) -> None:
    assert fit_area(size, limit, divisible_by) == expected


def test_an_image_that_would_vanish_is_left_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.pictures(tmp_path / "from", 1, (64, 64))
    Image.new("RGB", (64, 4)).save(tmp_path / "from" / "narrow.png")
    argv = [str(tmp_path / "from"), str(tmp_path / "to"), "--max_resolution", "32x32", "--divisible_by", "8"]
    assert main(["resize-images", *argv]) == 0
    assert "narrow.png is left out: 64x4 becomes 64x4" in capfd.readouterr().err
    assert list(sizes(tmp_path / "to")) == ["picture_00+32x32.jpg"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp("model")).path


def prepare(folder: Path, model: Path, **options: Any) -> tuple[Run, dict[str, Any]]:
    """Return the run that encodes the images, and the training size of each record."""
    names = {"in_json": folder.with_name("in.json"), "out_json": folder.with_name("out.json")}
    paths = {"train_data_dir": folder, "model_name_or_path": model, **names}
    run = prepared(BucketingConfig(**{name: str(path) for name, path in paths.items()}, **options))
    return run, {key: record.get("train_resolution") for key, record in read(names["out_json"]).items()}


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, [704, 320]),
        ({"max_resolution": "768,768"}, [1024, 512]),
        ({"max_resolution": "768,768", "max_bucket_reso": 1000}, [1024, 512]),
        ({"bucket_reso_steps": 28}, [696, 360]),
        ({"bucket_no_upscale": True, "bucket_reso_steps": 8}, [240, 120]),
    ],
)
def test_training_sizes_are_those_of_the_buckets(
    options: dict[str, Any], size: list[int], model: Path, tmp_path: Path
) -> None:
    tiny.pictures(tmp_path / "data", 1, (240, 120))
    (tmp_path / "in.json").write_text(json.dumps({"picture_00": {"train_resolution": [8, 8]}}))
    run, sizes = prepare(tmp_path / "data", model, **options)
    assert sizes == {"picture_00": size}
    (plan,) = blueprint.plans(run)
    (image_set,) = dataset.read([plan], 0).sets
    assert list(image_set.fit(0).bucket) == size


def test_what_gets_no_training_size_is_named(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    tiny.pictures(folder, 1, (64, 64))
    tiny.pictures(folder, 1, (64, 128), suffix=".webp")
    (folder / "broken.png").write_bytes(b"no image")
    (tmp_path / "in.json").write_text(json.dumps({"gone": {"tags": "x"}, "broken": {"caption": "y"}}))
    _, sizes = prepare(folder, model)
    assert sizes == {"gone": None, "broken": None, "picture_00": [512, 512]}
    assert "picture_00.webp is left out: another image has its name" in caplog.text
    assert "broken.png is left out: not an image" in caplog.text
    assert "2 of 3 records: no image" in caplog.text


def test_the_run_that_encodes_has_what_was_asked_for(model: Path, tmp_path: Path) -> None:
    tiny.pictures(tmp_path / "data", 1, (64, 64))
    (tmp_path / "in.json").write_text("{}")
    run, _ = prepare(
        tmp_path / "data", model, alpha_mask="yes", flip_aug=True, batch_size=3, mixed_precision="bf16"
    )
    assert run.family == "sd"
    assert (run[ImageConfig].alpha_mask, run[ImageConfig].flip_aug) == (True, True)
    assert run[CachingConfig].vae_batch_size == 3
    assert run[PrecisionConfig].mixed_precision == "bf16"
    with pytest.raises(UserError, match="--v2 is given, but MODEL_NAME_OR_PATH"):
        prepare(tmp_path / "data", model, v2=True)
    with pytest.raises(UserError, match="--max_resolution is 2048,2048; its sides must lie between"):
        prepare(tmp_path / "data", model, max_resolution="2048,2048")


@pytest.mark.parametrize("form", ["file", "folder", "folder of a folder", "single file's names"])
def test_an_autoencoder_alone_makes_the_latents_of_its_model(form: str, model: Path, tmp_path: Path) -> None:
    whole, prefix = load_file(model), "first_stage_model."
    own = {name.removeprefix(prefix): tensor for name, tensor in whole.items() if name.startswith(prefix)}
    if form != "single file's names":
        own = {
            new: own[old] for old, new in diffusers_names({n: (*t.shape,) for n, t in own.items()}).items()
        }
    names = {"folder": "ae/d.safetensors", "folder of a folder": "ae/vae/d.safetensors"}
    path = tmp_path / names.get(form, "ae.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(own, path)
    given = tmp_path / "ae" if "folder" in form else path
    found = []
    for number, source in enumerate((model, given)):
        folder = tmp_path / str(number)
        tiny.pictures(folder, 1, (64, 64))
        (tmp_path / "in.json").write_text("{}")
        argv = [str(folder), str(tmp_path / "in.json"), str(tmp_path / "out.json"), str(source)]
        argv += ["--max_resolution", "64,64", "--min_bucket_reso", "64"]
        assert script("finetune/prepare_buckets_latents", argv) == 0
        found.append(np.load(folder / "picture_00_0064x0064_sd.npz")["latents"])
    assert np.array_equal(*found)


def test_an_autoencoder_of_another_family_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vae = tiny.flux(tmp_path, hidden=32, heads=1, depth=1, depth_single=1).ae
    argv = [str(tmp_path), "in.json", "out.json", str(vae)]
    assert script("finetune/prepare_buckets_latents", argv) == 2
    assert "an autoencoder with 16 channels; Stable Diffusion's has 4" in capfd.readouterr().err


def test_images_are_upscaled_each_to_twice_its_own_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.sd(tmp_path / "model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(LatentNetwork().state_dict(), tmp_path / "weights.safetensors")
    tiny.pictures(tmp_path / "data", 2, (16, 16), captions=None)
    Image.new("RGB", (30, 17), "red").save(tmp_path / "data" / "other.jpg")
    (tmp_path / "data" / "broken.png").write_bytes(b"none")
    options = ["--vae_path", str(model.path), "--image_pattern", str(tmp_path / "data" / "*"), "--output_dir"]
    options += [str(tmp_path / "out"), "--weights"]
    assert script("tools/latent_upscaler", [*options, str(tmp_path / "weights.safetensors")]) == 0
    sizes = {path.name: read_size(path) for path in (tmp_path / "out").iterdir()}
    assert sizes == {
        "other_upscaled.jpg": (48, 32),
        "picture_00_upscaled.png": (32, 32),
        "picture_01_upscaled.png": (32, 32),
    }
    assert script("tools/latent_upscaler", [*options, str(model.path)]) == 2
    options[3] = str(tmp_path / "data" / "broken*")
    assert script("tools/latent_upscaler", [*options, str(tmp_path / "weights.safetensors")]) == 2
    assert "no such image can be read" in capsys.readouterr().err
    tiny.pictures(tmp_path / "more", 1, (16, 16), captions=None)
    options[3] = str(tmp_path / "*" / "picture*")
    assert script("tools/latent_upscaler", [*options, str(tmp_path / "weights.safetensors")]) == 2
    assert "take one folder at a time" in capsys.readouterr().err
