"""Runs as front-ends really send them train to the end, with tiny models in the place of the named ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sfumato.cli.main import script
from sfumato.config.public import to_toml
from tests import tiny
from tests.runs import figures, refusal

CLIENTS = Path(__file__).parents[1] / "compat" / "clients"
ROOT = Path(__file__).parents[2]
SENT: dict[str, dict[str, Any]] = json.loads((CLIENTS / "runs.json").read_text("utf-8"))
SMALL = {"max_train_steps": 1, "max_train_epochs": None, "resolution": "64,64", "min_bucket_reso": 64}
"""What a run is given beside tiny models, to be short; None leaves an option out."""

MENDED = {
    "sdxl_full_prodigy": {"learning_rate_te1": 1.0},
    "sd_full_adafactor": {"in_json": "<GUI>/test/captions.json"},
}
"""What cannot be trained as it was sent, by run: Prodigy takes one rate, a folder is no metadata file."""

TRAINED = {
    "sd_dreambooth": {"unet", "text_encoder1"},
    "sdxl_full_prodigy": {"unet", "text_encoder1"},
    "sd_full_data_set_file": {"unet", "text_encoder1"},
    "sd_full_adafactor": {"unet"},
    "sd3_full": {"unet"},
}
"""The parts that runs of whole models train; the others' rates are 0."""

DATA_SET = """
[[datasets]]
resolution = 64
batch_size = 4
keep_tokens = 1
enable_bucket = true
min_bucket_reso = 64
max_bucket_reso = 1024
bucket_reso_steps = 32
bucket_no_upscale = true

    [[datasets.subsets]]
    image_dir = '{folder}'
    num_repeats = 10
    class_tokens = 'darius kawasaki person'
    caption_extension = '.txt'
"""
METADATA_SET = """
[general]
shuffle_caption = true
keep_tokens = 1

[[datasets]]
resolution = 64
batch_size = 2
enable_bucket = true
min_bucket_reso = 64

    [[datasets.subsets]]
    metadata_file = '{file}'
"""


@dataclass(frozen=True)
class Place:
    """A front-end's folder, and what stands in for the models that its files name."""

    gui: Path
    models: dict[str, dict[str, str]]

    def prepare(
        self, name: str, out: Path, changes: Mapping[str, Any] | None = None
    ) -> tuple[list[str], dict[str, str]]:
        """Write the file and prompts of a run as its front-end does; return command line and environment."""
        kind = name.partition("_")[0]
        text = (CLIENTS / f"{name}.toml").read_text("utf-8")
        # Whatever is named twice would be no TOML.
        for key, value in {**self.models[kind], **SMALL, **(changes or {})}.items():
            text = re.sub(rf"(?m)^{key} = .*\n", "", text) + ("" if value is None else to_toml({key: value}))
        (out / "sample").mkdir(parents=True)
        (out / "sample" / "prompt.txt").write_text("", "utf-8")
        argv = [self._placed(part, out) for part in SENT[name]["argv"]]
        Path(argv[argv.index("--config_file") + 1]).write_text(self._placed(text, out), "utf-8")
        return argv, {"PYTHONPATH": self._placed(SENT[name]["PYTHONPATH"], out)}

    def _placed(self, text: str, out: Path) -> str:
        return text.replace("<OUT>", out.as_posix()).replace("<GUI>", self.gui.as_posix())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    gui = tmp_path_factory.mktemp("gui")
    (gui / "sd-scripts").symlink_to(ROOT / "sd-scripts")
    images = gui / "test" / "img" / "10_darius kawasaki person"
    tiny.pictures(images, 2, (96, 64))
    (gui / "test" / "config").mkdir()
    (gui / "test" / "config" / "dataset.toml").write_text(DATA_SET.format(folder=images), "utf-8")
    captions = gui / "test" / "captions.json"
    captions.write_text(json.dumps({str(path): {"caption": "a cat, red"} for path in images.glob("*.png")}))
    described = METADATA_SET.format(file=captions)
    (gui / "test" / "config" / "dataset-finetune.toml").write_text(described, "utf-8")
    models = {"sd": tiny.sd(gui / "sd"), "sdxl": tiny.sdxl(gui / "sdxl"), "flux": tiny.flux(gui / "flux")}
    models["sd3"] = tiny.sd3(gui / "sd3", in_one=False)
    return Place(gui, {kind: _as_options(model.arguments) for kind, model in models.items()})


def _as_options(arguments: list[str]) -> dict[str, str]:
    return {flag.lstrip("-"): value for flag, value in zip(arguments[::2], arguments[1::2], strict=True)}


def _check(out: Path) -> None:
    trained = load_file(out / "testout.safetensors")
    assert trained
    assert all(torch.isfinite(tensor).all() for tensor in trained.values())


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("name", SENT)
def test_a_run_of_a_front_end_trains_to_the_end(
    name: str, place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _train(place.prepare(name, tmp_path / "out", MENDED.get(name))[0]) == 0
    _check(tmp_path / "out")
    assert capfd.readouterr().err.count("no such option, ignored") == 1
    if name in TRAINED:
        (step,) = figures(tmp_path / "out" / "testout.metrics.jsonl")
        assert {key.rpartition("/")[2] for key in step if key.startswith("lr/")} == TRAINED[name]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("sdxl_full_prodigy", "takes one learning rate, but there are several (unet 1, text_encoder1 1e-05)"),
        ("sd_full_adafactor", "test/img cannot be read: Is a directory"),
    ],
)
def test_a_run_that_cannot_be_trained_as_it_was_sent_is_refused_in_one_line(
    name: str, complaint: str, place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _train(place.prepare(name, tmp_path / "out")[0]) == 2
    assert complaint in refusal(capfd)


def _train(argv: list[str]) -> int:
    at = next(number for number, part in enumerate(argv) if part.endswith(".py"))
    return script(Path(argv[at]).stem, argv[at + 1 :])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux_lora", "sdxl_lora_fp16"])
def test_a_front_end_starts_a_run_by_accelerate(name: str, place: Place, tmp_path: Path) -> None:
    (_, *argv), environment = place.prepare(name, tmp_path / "out")
    assert argv.pop(0) == "launch"
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *argv],
        cwd=place.gui,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    _check(tmp_path / "out")
    if name.endswith("fp16"):
        assert "--mixed_precision is fp16, which a CPU cannot train in; bf16 is used instead" in done.stderr
        assert "--xformers has no effect here: attention always runs in" in done.stderr


def test_fluxgym_finds_the_previews_of_a_run_by_their_names(place: Place, tmp_path: Path) -> None:
    prompts, out = tmp_path / "sample_prompts.txt", tmp_path / "out"
    prompts.write_text("# one a line\na cat --w 64 --h 64 --s 1\n", "utf-8")
    data = DATA_SET.format(folder=place.gui / "test" / "img" / "10_darius kawasaki person")
    (tmp_path / "dataset.toml").write_text("[general]\nkeep_tokens = 1\n" + data, "utf-8")
    model = [text for key, value in place.models["flux"].items() for text in (f"--{key}", value)]
    sent = f"""--cache_latents_to_disk --save_model_as safetensors --sdpa --persistent_data_loader_workers
        --max_data_loader_n_workers 0 --seed 42 --gradient_checkpointing --mixed_precision bf16
        --save_precision bf16 --network_module networks.lora_flux --network_dim 4 --optimizer_type adafactor
        --optimizer_args relative_step=False scale_parameter=False warmup_init=False --split_mode
        --network_args train_blocks=single --lr_scheduler constant_with_warmup --max_grad_norm 0.0
        --sample_prompts={prompts} --sample_every_n_steps=1 --learning_rate 8e-4 --max_train_steps 1
        --cache_text_encoder_outputs --cache_text_encoder_outputs_to_disk --fp8_base --save_every_n_epochs 4
        --dataset_config {tmp_path / "dataset.toml"} --output_dir {out} --output_name mine
        --timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw
        --guidance_scale 1 --loss_type l2"""
    assert script("flux_train_network", [*model, *sent.split()]) == 0
    assert load_file(out / "mine.safetensors")
    shown = [path.name for path in (out / "sample").iterdir()]
    assert shown
    assert all(re.search(r"_(\d+)_(\d+)_(\d+)\.png$", name) for name in shown)


def test_lora_scripts_reads_the_file_and_the_log_of_a_run(place: Place, tmp_path: Path) -> None:
    tiny.pictures(tmp_path / "img" / "1_zkz", 1)
    (tmp_path / "autosave.toml").write_text(
        LORA_SCRIPTS.format(here=tmp_path.as_posix()) + to_toml(place.models["sd"]), "utf-8"
    )
    assert script("train_network", ["--config_file", f"{tmp_path}/autosave.toml"]) == 0
    _check_log(tmp_path / "output" / "aki.safetensors", tmp_path / "logs", "aki")


LORA_SCRIPTS = """
train_data_dir = "{here}/img"
reg_data_dir = ""
resolution = "64,64"
enable_bucket = true
min_bucket_reso = 64
max_bucket_reso = 1024
bucket_reso_steps = 64
output_name = "aki"
output_dir = "{here}/output"
save_model_as = "safetensors"
save_precision = "fp16"
save_every_n_epochs = 2
max_train_epochs = 1
train_batch_size = 1
learning_rate = "1e-4"
unet_lr = "1e-4"
text_encoder_lr = "1e-5"
lr_restart_cycles = 1
optimizer_type = "AdamW"
network_module = "networks.lora"
network_dim = 8
network_alpha = 4
sample_prompts = ""
log_with = "tensorboard"
logging_dir = "{here}/logs"
log_prefix = "aki"
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 0
max_token_length = 255
seed = 1337
clip_skip = 2
prior_loss_weight = 1
mixed_precision = "bf16"
lowram = false
"""


def _check_log(file: Path, logs: Path, prefix: str) -> None:
    assert load_file(file)
    (folder,) = logs.iterdir()
    assert folder.name.startswith(prefix)
    assert list(folder.rglob("events.out.tfevents.*"))


def test_lora_easy_starts_a_script_with_two_files(place: Place, tmp_path: Path) -> None:
    images = place.gui / "test" / "img" / "10_darius kawasaki person"
    (tmp_path / "dataset.toml").write_text(
        "[general]\nresolution = [64, 64]\nbatch_size = 2\nenable_bucket = false\n\n[[datasets]]\n\n"
        "\t[[datasets.subsets]]\n\tnum_repeats = 1\n\tcaption_extension = '.txt'\n"
        f'\timage_dir = "{images}"\n',
        "utf-8",
    )
    values = {"output_dir": str(tmp_path / "out"), "output_name": "easy", **place.models["sd"]}
    text = to_toml({**values, "network_module": "networks.lora", "max_train_epochs": 1, "network_dim": 4})
    more = "optimizer_args = ['weight_decay=0.1', 'betas=0.9,0.99']\nnetwork_args = ['conv_dim=2']\n"
    (tmp_path / "config.toml").write_text(text + more, "utf-8")
    argv = [f"--config_file={tmp_path}/config.toml", f"--dataset_config={tmp_path}/dataset.toml"]
    assert script("train_network", argv) == 0
    assert any("conv" in key for key in load_file(tmp_path / "out" / "easy.safetensors"))


def test_the_wrapper_of_kohya_colab_trains_within_its_own_process(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "sd-scripts")
    from library.train_util import read_config_from_file  # pyright: ignore
    from train_network import NetworkTrainer, setup_parser  # pyright: ignore

    sections = {
        "model_arguments": place.models["sd"],
        "network_arguments": {"network_module": "networks.lora", "network_dim": 4, "unet_lr": 1e-4},
        "training_arguments": {"max_train_steps": 1, "train_batch_size": 2, "xformers": False, "sdpa": True},
        "saving_arguments": {"output_dir": str(tmp_path / "out"), "output_name": "colab"},
        "dataset_arguments": {"train_data_dir": str(place.gui / "test" / "img"), "resolution": 64},
        "logging": {"logging_dir": str(tmp_path / "logs"), "log_prefix": "colab"},
    }
    file = tmp_path / "config.toml"
    file.write_text("".join(f"[{name}]\n{to_toml(table)}" for name, table in sections.items()), "utf-8")
    monkeypatch.setattr(sys, "argv", ["train_network_wrapper.py", f"--config_file={file}"])
    parser = setup_parser()
    NetworkTrainer().train(read_config_from_file(parser.parse_args(), parser))
    _check_log(tmp_path / "out" / "colab.safetensors", tmp_path / "logs", "colab")
