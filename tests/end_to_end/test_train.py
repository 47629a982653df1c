"""Whole training runs on a tiny model in the published file formats, as people start them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from tests import tiny
from tests.runs import figures, others_slow, refusal

ROOT = Path(__file__).parents[2]
DROP_IN = ROOT / "sd-scripts" / "flux_train_network.py"

LORA_24_GB = shlex.split("""
--cache_latents_to_disk --save_model_as safetensors --sdpa --persistent_data_loader_workers
--max_data_loader_n_workers 2 --seed 42 --gradient_checkpointing --mixed_precision bf16 --save_precision bf16
--network_module networks.lora_flux --network_dim 4 --optimizer_type adamw8bit --learning_rate 1e-4
--cache_text_encoder_outputs --cache_text_encoder_outputs_to_disk --fp8_base
--highvram --max_train_epochs 4 --save_every_n_epochs 1
--timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --guidance_scale 1.0
""")
"""The options of sd-scripts' own example for FLUX.1 LoRA training on 24 GB, paths left out."""

LORA_16_GB = [
    *LORA_24_GB[: LORA_24_GB.index("--optimizer_type")],
    *LORA_24_GB[LORA_24_GB.index("--optimizer_type") + 2 :],
    *shlex.split("--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False"),
    *shlex.split("warmup_init=False --lr_scheduler constant_with_warmup --max_grad_norm 0.0"),
]

MULTI_RESOLUTION = """
[general]
# define common settings here
flip_aug = true
color_aug = false
keep_tokens_separator= "|||"
shuffle_caption = false
caption_tag_dropout_rate = 0
caption_extension = ".txt"

[[datasets]]
# define the first resolution here
batch_size = 2
enable_bucket = true
resolution = [64, 64]
min_bucket_reso = 32
bucket_reso_steps = 16

  [[datasets.subsets]]
  image_dir = "{folder}"
  num_repeats = 1

[[datasets]]
# define the second resolution here
batch_size = 3
enable_bucket = true
resolution = [48, 48]
min_bucket_reso = 32
bucket_reso_steps = 16

  [[datasets.subsets]]
  image_dir = "{folder}"
  num_repeats = 1
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "1_sks cat"
    tiny.pictures(folder, 3)
    tiny.pictures(folder / "wide", 1, (96, 48))
    (folder / "wide" / "picture_00.png").rename(folder / "wide.png")
    (folder / "wide" / "picture_00.txt").rename(folder / "wide.txt")
    (folder / "wide").rmdir()
    return folder


@pytest.fixture
def config(tmp_path: Path, images: Path) -> Path:
    path = tmp_path / "data.toml"
    path.write_text(MULTI_RESOLUTION.format(folder=images.as_posix()))
    return path


def arguments(model: tiny.TinyFlux, out: Path, *options: str) -> list[str]:
    places = ["--output_dir", str(out), "--output_name", "lora"]
    return [*model.arguments, *places, "--network_module", "networks.lora_flux", *options]


def simple(model: tiny.TinyFlux, images: Path, out: Path, *options: str) -> list[str]:
    """Return the arguments of a short run on a folder of images."""
    data = ["--train_data_dir", str(images.parent), "--resolution", "64", "--caption_extension", ".txt"]
    length = ["--max_train_steps", "3", "--learning_rate", "1e-2", "--seed", "5"]
    workers = ["--max_data_loader_n_workers", "0", "--network_dim", "2"]
    return arguments(model, out, *data, *length, *workers, *options)


def run(*options: str) -> None:
    assert script("flux_train_network", options) == 0


def tensors(folder: Path, name: str = "lora") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.mark.parametrize("launcher", others_slow(["python", "accelerate"], ["accelerate"]))
def test_sd_scripts_example_for_24_gb_runs_as_written(
    launcher: str, model: tiny.TinyFlux, config: Path, tmp_path: Path
) -> None:
    start = [sys.executable, str(DROP_IN)]
    if launcher == "accelerate":
        launch = "-m accelerate.commands.launch --mixed_precision bf16 --num_cpu_threads_per_process 1"
        start = [sys.executable, *launch.split(), str(DROP_IN)]
    out = tmp_path / "out"
    command = [*start, *arguments(model, out, *LORA_24_GB, "--dataset_config", str(config))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    saved = sorted(path.name for path in out.glob("*.safetensors"))
    assert saved == [*(f"lora-{epoch:06d}.safetensors" for epoch in (1, 2, 3)), "lora.safetensors"]
    weights = tensors(out)
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert sum(name.startswith("lora_unet") for name in weights) == 26 * 3
    assert sum(name.startswith("lora_te1") for name in weights) == 12 * 3
    assert all(weights[name].any() for name in weights if "lora_up" in name)
    record = metadata(out / "lora.safetensors")
    assert (record["ss_epoch"], record["ss_steps"]) == ("4", "20")
    assert record["ss_optimizer"] == "bitsandbytes.optim.adamw.AdamW8bit"


def test_sd_scripts_example_for_16_gb_runs(model: tiny.TinyFlux, config: Path, tmp_path: Path) -> None:
    short = ["--max_train_epochs", "1"]
    run(*arguments(model, tmp_path, *LORA_16_GB, "--dataset_config", str(config), *short))
    record = metadata(tmp_path / "lora.safetensors")
    assert record["ss_optimizer"] == (
        "transformers.optimization.Adafactor(relative_step=False,scale_parameter=False,warmup_init=False)"
    )
    assert record["ss_lr_scheduler"] == "constant_with_warmup"


def test_the_sub_command_trains_with_the_family_s_own_module(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    options = simple(model, images, tmp_path, "--network_train_unet_only")
    at = options.index("--network_module")
    assert main(["train", "flux", "lora", *options[:at], *options[at + 2 :]]) == 0
    assert all(name.startswith("lora_unet") for name in tensors(tmp_path))


def test_the_number_of_workers_and_caching_change_nothing(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    options = ["--train_batch_size", "2", "--flip_aug", "--enable_bucket", "--min_bucket_reso", "32"]
    cached = [*options, "--cache_latents", "--bucket_reso_steps", "16"]
    for name, extra in {
        "memory": [],
        "disk": ["--cache_latents_to_disk"],
        "disk again": ["--cache_latents_to_disk"],
        "workers": ["--max_data_loader_n_workers", "2", "--persistent_data_loader_workers"],
    }.items():
        run(*simple(model, images, tmp_path / name, *cached, *extra))
        assert_equal(tensors(tmp_path / "memory"), tensors(tmp_path / name))


def test_caching_texts_changes_nothing_but_what_is_loaded(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    unet_only = ["--network_train_unet_only"]
    run(*simple(model, images, tmp_path / "live", *unet_only))
    cached = [*unet_only, "--cache_text_encoder_outputs_to_disk", "--cache_latents_to_disk"]
    run(*simple(model, images, tmp_path / "cached", *cached))
    capfd.readouterr()
    run(*simple(model, images, tmp_path / "again", *cached))
    loaded = [line for line in capfd.readouterr().err.splitlines() if "loading" in line]
    assert len(loaded) == 1
    assert "denoiser" in loaded[0]
    assert_equal(tensors(tmp_path / "cached"), tensors(tmp_path / "again"))
    live, cached_weights = tensors(tmp_path / "live"), tensors(tmp_path / "cached")
    # Latents of a cached run are drawn once, those of a live one in every step: close, not equal.
    assert live.keys() == cached_weights.keys()


def test_gradient_checkpointing_changes_memory_and_not_weights(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    dropouts = ["--network_dropout", "0.2", "--network_args", "rank_dropout=0.2", "module_dropout=0.1"]
    run(*simple(model, images, tmp_path / "plain", *dropouts))
    run(*simple(model, images, tmp_path / "checkpointed", *dropouts, "--gradient_checkpointing"))
    plain, checkpointed = tensors(tmp_path / "plain"), tensors(tmp_path / "checkpointed")
    for name, tensor in plain.items():
        torch.testing.assert_close(checkpointed[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("caption", ["shuffled", "dropped"])
def test_live_text_encoders_see_captions_that_vary(
    caption: str, model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    option = {"shuffled": ["--shuffle_caption"], "dropped": ["--caption_dropout_rate", "0.5"]}[caption]
    run(*simple(model, images, tmp_path / "fixed"))
    run(*simple(model, images, tmp_path / "varied", *option))
    fixed, varied = tensors(tmp_path / "fixed"), tensors(tmp_path / "varied")
    assert any(not torch.equal(fixed[name], varied[name]) for name in fixed)


def test_regularisation_images_weigh_as_asked(model: tiny.TinyFlux, images: Path, tmp_path: Path) -> None:
    tiny.pictures(tmp_path / "reg" / "1_cat", 2, seed=9)
    reg = ["--reg_data_dir", str(tmp_path / "reg")]
    run(*simple(model, images, tmp_path / "one", *reg))
    run(*simple(model, images, tmp_path / "none", *reg, "--prior_loss_weight", "0"))
    record = metadata(tmp_path / "one" / "lora.safetensors")
    assert json.loads(record["ss_reg_dataset_dirs"]) == {"1_cat": {"n_repeats": 1, "img_count": 2}}
    assert record["ss_num_reg_images"] == "2"
    one, none = tensors(tmp_path / "one"), tensors(tmp_path / "none")
    assert any(not torch.equal(one[name], none[name]) for name in one)


def test_schnell_and_the_loss_and_timestep_options_train(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    schnell = tiny.flux(tmp_path / "schnell", schnell=True)
    for number, options in enumerate(
        (
            "--timestep_sampling flux_shift --loss_type huber --huber_schedule exponential",
            "--timestep_sampling sigmoid --model_prediction_type additive --loss_type l1",
            "--weighting_scheme mode --apply_t5_attn_mask --loss_type smooth_l1 --huber_schedule constant",
            "--timestep_sampling uniform --model_prediction_type raw --t5xxl_max_token_length 64",
        )
    ):
        out = tmp_path / str(number)
        run(*simple(schnell if number % 2 else model, images, out, *options.split()))
        lines = figures(out / "lora.metrics.jsonl")
        assert [line["step"] for line in lines] == [1, 2, 3]
        assert all(0 < line["loss"] < 100 for line in lines)


def test_the_run_s_configuration_lies_beside_its_output_and_repeats_it(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    run(*simple(model, images, tmp_path / "first", "--network_args", "train_blocks=single"))
    saved = tmp_path / "first" / "lora.config.toml"
    run("--config_file", str(saved), "--output_dir", str(tmp_path / "second"))
    assert_equal(tensors(tmp_path / "first"), tensors(tmp_path / "second"))


def test_a_corrupt_image_is_named_and_left_out(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (images / "no_header.png").write_bytes((images / "wide.png").read_bytes()[:20])
    (images / "cut_off.png").write_bytes((images / "picture_00.png").read_bytes()[:99])
    run(*simple(model, images, tmp_path, "--max_train_epochs", "1"))
    shown = capfd.readouterr().err
    assert str(images / "no_header.png") in shown
    assert f"{images / 'cut_off.png'} could not be decoded and was replaced 1 time\n" in shown
    assert metadata(tmp_path / "lora.safetensors")["ss_num_train_images"] == "5"


def test_missing_captions_warn_and_are_an_error_when_strict(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (images / "wide.txt").unlink()
    images = images.rename(images.with_name("1_"))  # no class tokens to stand in
    run(*simple(model, images, tmp_path))
    assert "1 of 4 images in" in capfd.readouterr().err
    assert script("flux_train_network", simple(model, images, tmp_path, "--strict")) == 2
    assert "1 of 4 images in" in capfd.readouterr().err


def _wrong(case: str, model: tiny.TinyFlux, images: Path, out: Path) -> list[str]:
    """Return the arguments of a run with one mistake."""

    def instead(option: str, value: Path | str) -> list[str]:
        options = simple(model, images, out)
        options[options.index(option) + 1] = str(value)
        return options

    bad = out.parent / "bad.safetensors"
    if case == "missing file":
        return instead("--ae", out / "nowhere.safetensors")
    if case == "empty folder":
        (out.parent / "empty" / "1_x").mkdir(parents=True)
        return instead("--train_data_dir", out.parent / "empty")
    if case == "truncated":
        bad.write_bytes(model.transformer.read_bytes()[:-100])
        return instead("--pretrained_model_name_or_path", bad)
    if case == "another model":
        names = ("conditioner.embedders.1.model.ln_final.weight", "model.diffusion_model.out.0.weight")
        save_file({name: torch.zeros(2) for name in names}, bad)
        return instead("--pretrained_model_name_or_path", bad)
    if case == "unwritable output":
        (out.parent / "file").write_text("")
        return instead("--output_dir", out.parent / "file" / "out")
    if case == "name too long":
        return instead("--output_name", "n" * 235)
    if case == "image's name too long":
        tiny.pictures(out.parent / "long" / "1_x", 1)[0].rename(
            out.parent / "long" / "1_x" / f"{'n' * 240}.png"
        )
        return [*instead("--train_data_dir", out.parent / "long"), "--cache_latents_to_disk"]
    extra = {
        "unknown option": ["--lerning_rate", "1"],
        "contradiction": ["--network_train_unet_only", "--network_train_text_encoder_only"],
        "block that is not there": ["--network_args", "train_double_block_indices=5"],
        "captions vary": ["--cache_text_encoder_outputs", "--shuffle_caption"],
        "fp16 on a CPU": ["--mixed_precision", "fp16"],
        "no such threshold": ["--loss_type", "huber"],
        "unknown schedule": ["--lr_scheduler", "cosin"],
        "unknown optimizer": ["--optimizer_type", "AdanW"],
        "unknown argument": ["--network_args", "dmi=3"],
    }
    return simple(model, images, out, *extra[case])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing file", "--ae"),
        ("empty folder", "empty"),
        ("truncated", "is truncated"),
        ("another model", "SDXL"),
        ("unwritable output", "--output_dir"),
        ("name too long", "File name too long; shorten or change --output_name"),
        (
            "image's name too long",
            "File name too long; let the folder be written to, or cache without _to_disk",
        ),
        ("unknown option", "did you mean --learning_rate?"),
        ("contradiction", "--network_train_unet_only"),
        ("block that is not there", "block 5"),
        ("captions vary", "shuffle_caption makes the captions of"),
        ("fp16 on a CPU", "--mixed_precision is fp16"),
        ("no such threshold", "--huber_schedule"),
        ("unknown schedule", "--lr_scheduler is cosin"),
        ("unknown optimizer", "--optimizer_type is AdanW"),
        ("unknown argument", "dmi is unknown"),
    ],
)
def test_a_mistake_is_one_line_and_status_2_before_any_weight_is_loaded(
    case: str,
    message: str,
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert script("flux_train_network", _wrong(case, model, images, tmp_path / "out")) == 2
    assert message in refusal(capfd)


def test_too_little_disk_space_is_found_before_training(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    assert script("flux_train_network", simple(model, images, tmp_path / "out")) == 2
    assert "what this run will save needs" in capfd.readouterr().err


def test_a_trained_adapter_changes_the_images_it_makes(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    run(*simple(model, images, tmp_path, "--network_alpha", "64"))
    shared = [
        *model.generation_arguments,
        *shlex.split("--width 32 --height 32 --steps 2 --seed 1 --dtype fp32"),
    ]
    found = []
    for strength in (0, 1):
        out = tmp_path / str(strength)
        lora = f"{tmp_path / 'lora.safetensors'};{strength}"
        assert script("flux_minimal_inference", [*shared, "--output_dir", str(out), "--lora", lora]) == 0
        with Image.open(next(out.glob("*.png"))) as image:
            found.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float())
    assert (found[0] - found[1]).abs().mean() > 0.5


def test_previews_are_made_and_leave_no_trace_in_the_weights(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat --w 64 --h 64 --d 3 --s 2\n# a comment\na dog --w 96 --h 64 --s 1\n")
    cached = ["--cache_latents", "--cache_text_encoder_outputs"]
    shown = ["--sample_prompts", str(prompts), "--sample_every_n_steps", "2", "--sample_at_first"]
    run(*simple(model, images, tmp_path / "without", *cached))
    run(*simple(model, images, tmp_path / "with", *cached, *shown))
    assert_equal(tensors(tmp_path / "without"), tensors(tmp_path / "with"))
    names = sorted(path.name for path in (tmp_path / "with" / "sample").iterdir())
    marks = ["lora_000002_00_", "lora_000002_01_", "lora_e000000_00_", "lora_e000000_01_"]
    assert [name[: len(mark)] for name, mark in zip(names, marks, strict=True)] == marks
    assert names[0].endswith("_3.png")


def test_torchrun_starts_the_drop_in(model: tiny.TinyFlux, images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", str(DROP_IN)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, *simple(model, images, tmp_path, "--max_train_steps", "1")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "lora.safetensors").exists()
