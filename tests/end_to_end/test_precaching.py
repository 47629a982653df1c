"""Training finds the images and captions that the tools of sd-scripts encoded ahead, and encodes none."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from sfumato.cli.main import main, script
from tests import tiny
from tests.runs import others_slow

DATA = shlex.split("--resolution 64 --caption_extension .txt --flip_aug")
TRAINERS = {"sd": "train_network", "sdxl": "sdxl_train_network", "flux": "flux_train_network"}
TRAINERS["sd3"] = "sd3_train_network"
LATENTS = {"sd": "_0064x0064_sd.npz", "sdxl": "_0064x0064_sdxl.npz", "flux": "_0064x0064_flux.npz"}
LATENTS["sd3"] = "_0064x0064_sd3.npz"
TEXTS = {"sdxl": "_te_outputs.npz", "flux": "_flux_te.npz", "sd3": "_sd3_te.npz"}
ENCODERS = ("vae", "clip_l", "clip_g", "t5xxl", "text_encoder1", "text_encoder2")


Model = tiny.TinyFlux | tiny.TinySd3 | tiny.TinyCheckpoint


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    older = {"sd": tiny.sd(folder), "sdxl": tiny.sdxl(folder)}
    return {**older, "flux": tiny.flux(folder), "sd3": tiny.sd3(folder / "sd3", hidden=64)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    tiny.pictures(tmp_path / "data" / "1_cat", 2, (64, 64))
    return tmp_path / "data"


def family(kind: str) -> list[str]:
    return [] if kind == "sd" else [f"--{kind}"]


def train(kind: str, arguments: list[str], images: Path, out: Path, *options: str) -> None:
    network = {"flux": "networks.lora_flux", "sd3": "networks.lora_sd3"}.get(kind, "networks.lora")
    shared = ["--network_module", network, "--network_dim", "1", "--max_train_steps", "1", *options]
    places = ["--train_data_dir", str(images), "--output_dir", str(out), "--cache_latents_to_disk"]
    workers = ["--max_data_loader_n_workers", "0", "--network_train_unet_only"]
    assert script(TRAINERS[kind], [*arguments, *DATA, *shared, *places, *workers]) == 0


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Return the arrays of each cache file, but for the records, which hold times."""
    return {
        path.name: {name: array for name, array in np.load(path).items() if not name.startswith("sfumato")}
        for path in sorted(folder.rglob("*.npz"))
    }


@pytest.mark.parametrize("kind", others_slow(TRAINERS, ["sdxl", "flux", "sd3"]))
def test_training_finds_what_the_tools_encoded_and_would_have_made_the_same(
    kind: str,
    models: dict[str, Model],
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    other = shutil.copytree(images, tmp_path / "other")
    tool = [*models[kind].arguments, *DATA, *family(kind), "--mixed_precision", "bf16"]
    assert script("tools/cache_latents", [*tool, "--train_data_dir", str(images)]) == 0
    texts = ["--cache_text_encoder_outputs_to_disk"] if kind in TEXTS else []
    if texts:
        assert script("tools/cache_text_encoder_outputs", [*tool, "--train_data_dir", str(images)]) == 0
    capfd.readouterr()
    texts += ["--mixed_precision", "bf16"]
    train(kind, models[kind].arguments, images, tmp_path / "out", *texts)
    log = capfd.readouterr().err
    assert "loading denoiser" in log
    assert not [name for name in ENCODERS if f"loading {name} " in log]
    train(kind, models[kind].arguments, other, tmp_path / "out", *texts)
    assert "loading vae " in capfd.readouterr().err
    ahead, beside = arrays(images), arrays(other)
    suffixes = (LATENTS[kind], TEXTS.get(kind))
    assert list(ahead) == sorted(
        f"picture_{number:02d}{suffix}" for number in range(2) for suffix in suffixes if suffix
    )
    assert ahead.keys() == beside.keys()
    for name, found in ahead.items():
        assert found.keys() == beside[name].keys()
        assert all(np.array_equal(array, beside[name][key]) for key, array in found.items()), name
    flipped = [key for key in ahead[f"picture_00{LATENTS[kind]}"] if key.startswith("latents_flipped")]
    assert len(flipped) == 1


def test_files_that_are_there_are_kept_on_request_and_otherwise_if_they_are_valid(
    models: dict[str, Model], images: Path
) -> None:
    tool = [*models["sd"].arguments, *DATA, "--train_data_dir", str(images)]
    assert script("tools/cache_latents", tool) == 0
    before = arrays(images)
    tiny.pictures(images / "1_cat", 1, (64, 64), seed=9)
    assert script("tools/cache_latents", [*tool, "--skip_existing"]) == 0
    kept = arrays(images)
    assert script("tools/cache_latents", tool) == 0
    remade = arrays(images)
    first, second = (f"picture_{number:02d}{LATENTS['sd']}" for number in range(2))
    assert np.array_equal(kept[first]["latents"], before[first]["latents"])
    assert np.abs(remade[first]["latents"] - before[first]["latents"]).max() > 0.1
    assert np.array_equal(remade[second]["latents"], before[second]["latents"])


def test_t5_can_have_a_format_of_its_own(models: dict[str, Model], images: Path) -> None:
    tool = [*models["flux"].arguments, *DATA, "--flux", "--train_data_dir", str(images)]
    found = {}
    for name in ("bf16", "fp32"):  # what was made in fp32 would serve for bf16
        assert main(["cache-text", *tool, "--t5xxl_dtype", name]) == 0
        found[name] = arrays(images)[f"picture_00{TEXTS['flux']}"]
    assert np.array_equal(found["fp32"]["l_pooled"], found["bf16"]["l_pooled"])
    difference = np.abs(found["fp32"]["t5_out"] - found["bf16"]["t5_out"]).max()
    assert 1e-4 < difference < 0.2


@pytest.mark.parametrize(
    ("command", "kind", "options", "message"),
    [
        ("cache-latents", "sd", "--sdxl --flux", "--flux excludes --sdxl"),
        ("cache-latents", "sd", "--random_crop", "--cache_latents excludes random_crop"),
        ("cache-latents", "sd", "--sdxl", "--pretrained_model_name_or_path"),
        ("cache-latents", "sd", "--strict --ae x", "--ae has no effect here: the model has no such part"),
        ("cache-latents", "sd", "--strict --save_state --output_name a", "nothing is trained here"),
        ("cache-latents", "sdxl", "--strict --sdxl --v2", "--v2 has no effect here"),
        ("cache-text", "sd", "", "give --flux or --sd3 or --sdxl"),
        ("cache-text", "flux", "--flux --weighted_captions", "--weighted_captions cannot work here: T5"),
        ("cache-text", "flux", "--flux --shuffle_caption", "shuffle_caption makes the captions"),
        ("cache-text", "flux", "--flux --t5xxl_dtype int3", "--t5xxl_dtype is 'int3'"),
    ],
)
def test_mistakes_are_one_line(
    command: str,
    kind: str,
    options: str,
    message: str,
    models: dict[str, Model],
    images: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tool = [*models[kind].arguments, *DATA, "--train_data_dir", str(images), *options.split()]
    assert main([command, *tool]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert arrays(images) == {}


def test_the_data_is_shown_instead_on_request(
    models: dict[str, Model],
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tool = [*models["sdxl"].arguments, *DATA, "--sdxl", "--train_data_dir", str(images)]
    assert main(["cache-text", *tool, "--debug_dataset", "--output_dir", str(tmp_path)]) == 0
    assert "2 images, 2 shown in an epoch" in capsys.readouterr().out
    assert (tmp_path / "dataset.html").exists()
    assert arrays(images) == {}


@pytest.mark.parametrize("kind", others_slow(["sd", "sdxl"], ["sd"]))
def test_a_metadata_file_gets_training_sizes_and_training_finds_the_latents(
    kind: str,
    models: dict[str, Model],
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, model = images / "1_cat", models[kind]
    tiny.pictures(folder / "below", 1, (96, 32))
    captions, sizes = tmp_path / "captions.json", tmp_path / "sizes.json"
    paths = ["--full_path", "--recursive"]
    assert script("finetune/merge_captions_to_metadata", [
        str(folder), str(captions), "--caption_extension", ".txt", *paths
    ]) == 0  # fmt: skip
    limits = shlex.split("--max_resolution 64,64 --min_bucket_reso 32 --max_bucket_reso 128 --flip_aug")
    steps = ["--bucket_reso_steps", "32", "--batch_size", "2"]
    assert isinstance(model, tiny.TinyCheckpoint)
    argv = [str(folder), str(captions), str(sizes), str(model.path), *limits, *steps, *paths]
    assert script("finetune/prepare_buckets_latents", argv) == 0
    found = json.loads(sizes.read_text("utf-8"))
    assert {Path(key).relative_to(folder).as_posix(): found[key]["train_resolution"] for key in found} == {
        "below/picture_00.png": [96, 32],
        "picture_00.png": [64, 64],
        "picture_01.png": [64, 64],
    }
    shapes = {name: cache["latents"].shape for name, cache in arrays(folder / "below").items()}
    assert shapes == {f"picture_00_0096x0032_{kind}.npz": (4, 4, 12)}
    capfd.readouterr()
    options = [*model.arguments, "--in_json", str(sizes), "--flip_aug", "--cache_latents_to_disk"]
    options += shlex.split("--network_module networks.lora --network_dim 1 --max_train_steps 1")
    options += [
        "--max_data_loader_n_workers",
        "0",
        "--output_dir",
        str(tmp_path),
        "--network_train_unet_only",
    ]
    assert script(TRAINERS[kind], options) == 0
    log = capfd.readouterr().err
    assert "loading denoiser" in log
    assert "loading vae" not in log
    assert "3 images (with repeats)" in log
