"""Whole trainings of Stable Diffusion 1, 2 and XL on tiny models in the published formats."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sfumato.cli.main import main, script
from tests import tiny
from tests.runs import others_slow

SHORT = shlex.split("--resolution 64 --caption_extension .txt --network_dim 2 --seed 1 --learning_rate 1e-3")
KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_cat", 3)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.TinyCheckpoint]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd1": tiny.sd(folder / "sd1"),
        "sd2": tiny.sd(folder / "sd2", v2=True, v_parameterization=True),
        "sdxl": tiny.sdxl(folder / "sdxl"),
    }


def train(
    kind: str, model: tiny.TinyCheckpoint, images: Path, out: Path, *options: str
) -> dict[str, torch.Tensor]:
    name = "sdxl_train_network" if kind == "sdxl" else "train_network"
    places = ["--train_data_dir", str(images), "--output_dir", str(out), "--output_name", "lora"]
    shared = ["--network_module", "networks.lora", "--max_data_loader_n_workers", "0", *SHORT]
    length = [] if "--max_train_epochs" in options else ["--max_train_steps", "3"]
    assert script(name, [*model.arguments, *places, *shared, *length, *options]) == 0
    return load_file(out / "lora.safetensors")


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lora_is_trained_on_denoiser_and_text_encoders(
    kind: str, models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    weights = train(kind, models[kind], images, tmp_path)
    prefixes = {name.split("_", 2)[0] + "_" + name.split("_", 2)[1] for name in weights}
    assert prefixes == {"lora_unet", *(("lora_te1", "lora_te2") if kind == "sdxl" else ("lora_te",))}
    ups = [tensor for name, tensor in weights.items() if "lora_up" in name]
    # The last layers of SDXL's text encoders, and of SD 2's, are not listened to.
    assert sum(bool(up.any()) for up in ups) > 0.8 * len(ups)


@pytest.mark.parametrize("kind", others_slow(KINDS, ["sd2", "sdxl"]))
def test_a_folder_and_a_single_file_train_alike(
    kind: str, models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    make = tiny.sdxl if kind == "sdxl" else tiny.sd
    options = {"v2": True, "v_parameterization": True} if kind == "sd2" else {}
    folder = make(tmp_path / "model", as_folder=True, **options)
    # Plain SGD: Adam's first steps are signs, which rounding can turn.
    only = ["--network_train_unet_only", "--optimizer_type", "SGDNesterov", "--learning_rate", "1e-2"]
    single = train(kind, models[kind], images, tmp_path / "file", *only)
    other = train(kind, folder, images, tmp_path / "folder", *only)
    for name, tensor in single.items():
        error = (other[name].reshape(tensor.shape) - tensor).abs().max()
        # One token asks one token: gradients are 0 but for rounding, which differs between processors.
        assert error <= 1e-3 * tensor.abs().max() + 1e-10, name


@pytest.mark.parametrize(
    ("kind", "network"),
    [
        pytest.param("sd1", "", marks=pytest.mark.slow),
        ("sdxl", ""),
        ("sd1", "--network_module networks.dylora --network_args unit=1"),
    ],
    ids=["sd1", "sdxl", "ranks drawn in every step"],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    kind: str, network: str, models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    options = ["--max_train_epochs", "2", "--save_every_n_epochs", "1", "--save_state", "--flip_aug"]
    options += network.split()
    whole = train(kind, models[kind], images, tmp_path / "whole", *options)
    state = tmp_path / "whole" / "lora-000001-state"
    resumed = train(kind, models[kind], images, tmp_path / "resumed", *options, "--resume", str(state))
    assert same(whole, resumed)


@pytest.mark.parametrize(
    "options",
    [
        "--min_snr_gamma 5 --noise_offset 0.1 --clip_skip 2",
        "--multires_noise_iterations 2 --ip_noise_gamma 0.1 --loss_type huber",
        "--debiased_estimation_loss --min_timestep 100 --max_timestep 900 --max_token_length 150",
        "--network_args conv_dim=2 down_lr_weight=linear --weighted_captions --lr_scheduler cosine",
    ],
)
def test_the_options_of_noise_predicting_models_train(
    options: str, models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    weights = train("sd1", models["sd1"], images, tmp_path, *shlex.split(options))
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    if "conv_dim" in options:
        assert any("resnets" in name for name in weights)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [("", ("0.001", "0.0001")), ("--optimizer_type adafactor --text_encoder_lr 1e-4", ("None", "None"))],
)
def test_rates_are_recorded_as_numbers_and_not_where_the_optimizer_has_its_own(
    optimizer: str,
    expected: tuple[str, str],
    models: dict[str, tiny.TinyCheckpoint],
    images: Path,
    tmp_path: Path,
) -> None:
    options = ["--text_encoder_lr", "1e-4", "--max_train_epochs", "1", *optimizer.split()]
    train("sd1", models["sd1"], images, tmp_path, *options)
    with safe_open(tmp_path / "lora.safetensors", "pt") as file:
        record = file.metadata()
    assert (record["ss_learning_rate"], record["ss_text_encoder_lr"]) == expected


def test_velocity_models_take_their_own_options(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    own = ["--scale_v_pred_loss_like_noise_pred", "--zero_terminal_snr", "--cache_latents"]
    assert train("sd2", models["sd2"], images, tmp_path, *own)


def test_caching_texts_needs_text_encoders_that_are_not_trained(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cached = ["--cache_text_encoder_outputs_to_disk", "--cache_latents_to_disk"]
    train("sdxl", models["sdxl"], images, tmp_path / "a", *cached, "--network_train_unet_only")
    capfd.readouterr()
    train("sdxl", models["sdxl"], images, tmp_path / "b", *cached, "--network_train_unet_only")
    loaded = [line.split()[3] for line in capfd.readouterr().err.splitlines() if " loading " in line]
    assert loaded == ["denoiser"]
    places = [
        "--train_data_dir",
        str(images),
        "--output_dir",
        str(tmp_path),
        "--network_module",
        "networks.lora",
    ]
    assert script("sdxl_train_network", [*models["sdxl"].arguments, *places, *SHORT, *cached]) == 2
    assert "every text encoder is trained" in capfd.readouterr().err


@pytest.mark.parametrize(("kind", "module"), [("sd1", "networks.loha"), ("sdxl", "networks.lokr")])
def test_other_kinds_of_adapters_train(
    kind: str, module: str, models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    weights = train(kind, models[kind], images, tmp_path, "--network_module", module)
    mark = "hada_w1_a" if module.endswith("loha") else "lokr_w"
    assert any(mark in name for name in weights)


def test_the_sub_commands_know_both_families(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    for kind, family in (("sd1", "sd"), ("sdxl", "sdxl")):
        places = ["--train_data_dir", str(images), "--output_dir", str(tmp_path), "--output_name", family]
        few = [*SHORT, "--max_train_steps", "1", "--max_data_loader_n_workers", "0"]
        assert main(["train", family, "lora", *models[kind].arguments, *places, *few]) == 0
        assert (tmp_path / f"{family}.safetensors").exists()


def test_a_model_of_another_family_is_named(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = [
        "--train_data_dir",
        str(images),
        "--output_dir",
        str(tmp_path),
        "--network_module",
        "networks.lora",
    ]
    assert script("train_network", [*models["sdxl"].arguments, *places, *SHORT]) == 2
    assert "SDXL" in capfd.readouterr().err
