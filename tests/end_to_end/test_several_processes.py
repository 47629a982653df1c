"""Runs of several processes, as torchrun starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sfumato.cli.main import script
from sfumato.training.core.distributed import missing_processes
from tests import tiny
from tests.runs import figures, num_steps, others_slow

ROOT = Path(__file__).parents[2]
DROP_IN = ROOT / "sd-scripts" / "flux_train_network.py"

ONE_FAILS = """
import sys
sys.path.insert(0, {root!r})
from sfumato.cli import main
from sfumato.config.run.distributed import DistributedConfig
from sfumato.errors import UserError
from sfumato.training.core import distributed

def work(_):
    processes = distributed.start(DistributedConfig())
    processes.wait()
    if processes.rank == 1:
        raise UserError("the second one is unwell")
    processes.wait()

main._COMMANDS["work"] = work
sys.exit(main.main(["work"]))
"""

STARTS = """
import sys
sys.path.insert(0, {root!r})
from sfumato import log
from sfumato.config.run.distributed import DistributedConfig
from sfumato.training.core import distributed

log.set_up()
distributed.start(DistributedConfig())
"""


def start(*command: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([*launcher, *command], stdout=pipe, stderr=pipe, text=True, env=environment)


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    with start(*command) as process:
        out, errors = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, errors)


def options(model: tiny.TinyFlux, data: Path, out: Path, *more: str) -> list[str]:
    """Return the arguments of six epochs of five images: the last step of each has one of its two."""
    prompts = data.parent / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1 --d 1\na dog --w 64 --h 64 --s 1 --d 2\n")
    return [
        *model.arguments,
        *("--output_dir", str(out), "--output_name", "lora", "--logging_dir", str(out / "logs")),
        *("--train_data_dir", str(data), "--resolution", "64", "--caption_extension", ".txt"),
        *("--max_train_epochs", "6", "--learning_rate", "1e-2", "--seed", "5", "--save_every_n_epochs", "4"),
        *("--network_module", "networks.lora_flux", "--network_dim", "2", "--network_train_unet_only"),
        *("--max_data_loader_n_workers", "0", "--cache_latents_to_disk", "--cache_text_encoder_outputs"),
        *("--sample_prompts", str(prompts), "--sample_every_n_epochs", "6", *more),
    ]


def files(folder: Path) -> list[str]:
    """Return the files below `folder`; what names hold of date, time and process is left out."""
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted("".join(c for c in name.split("tfevents")[0] if not c.isdigit()) for name in names)


@dataclass(frozen=True)
class Uninterrupted:
    """A run of two processes, from its first step to its last."""

    model: tiny.TinyFlux
    data: Path
    out: Path
    shown: str


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    folder = tmp_path_factory.mktemp("two")
    model = tiny.flux(folder / "model", hidden=32, heads=1)
    tiny.pictures(folder / "data" / "1_cat", 5)
    done = torchrun(str(DROP_IN), *options(model, folder / "data", folder / "out"))
    assert done.returncode == 0, done.stderr[-3000:]
    return Uninterrupted(model, folder / "data", folder / "out", done.stderr)


def test_two_processes_train_what_one_trains_with_twice_the_accumulation_and_do_the_rest_once(
    by_two: Uninterrupted, tmp_path: Path
) -> None:
    one, two = tmp_path / "out", by_two.out
    tiny.pictures(tmp_path / "data" / "1_cat", 5)
    assert (
        script(
            "flux_train_network",
            options(by_two.model, tmp_path / "data", one, "--gradient_accumulation_steps", "2"),
        )
        == 0
    )
    theirs, ours = (load_file(out / "lora.safetensors") for out in (one, two))
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert any(tensor.any() for name, tensor in ours.items() if "lora_up" in name)
    losses = [[line["loss"] for line in figures(out / "lora.metrics.jsonl")] for out in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert len(losses[1]) == 18
    assert files(one) == files(two)
    assert len(list((two / "sample").iterdir())) == 2
    assert len(list((by_two.data / "1_cat").glob("*.npz"))) == 5
    saved = [f"saved {two / name}" for name in ("lora.safetensors", "lora-000004.safetensors")]
    for line in (*saved, "encoding images: 100%", "differs from its defaults"):
        assert by_two.shown.count(line) == 1, line


def test_a_signal_ends_all_processes_after_one_step_and_the_resumed_run_is_the_uninterrupted_one(
    by_two: Uninterrupted, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ended = options(by_two.model, by_two.data, out)
    metrics = out / "lora.metrics.jsonl"
    with start(str(DROP_IN), *ended) as process:
        while process.poll() is None and num_steps(metrics) < 2:
            time.sleep(0.001)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate()
    assert errors.count("SIGTERM ended the run") == 1, errors[-3000:]
    assert not (out / "lora.safetensors").exists()
    (state,) = out.glob("*-state")
    assert torchrun(str(DROP_IN), *ended, "--resume", str(state)).returncode == 0
    theirs, ours = (load_file(folder / "lora.safetensors") for folder in (by_two.out, out))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    assert num_steps(metrics) == 18


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
def test_two_processes_adapt_stable_diffusion_3_as_one_does(optimizer: str, tmp_path: Path) -> None:
    """AdamW turns rounding into whole steps where a gradient is next to nothing: its losses are compared."""
    model = tiny.sd3(tmp_path / "model", hidden=64)
    tiny.pictures(tmp_path / "data" / "1_cat", 4)

    def arguments(name: str, *more: str) -> list[str]:
        text = "--output_name lora --resolution 64 --caption_extension .txt --max_train_steps 2 --seed 5 "
        text += "--cache_latents --cache_text_encoder_outputs --clip_l_dropout_rate 0.5 "
        text += "--network_module networks.lora_sd3 --network_dim 2 --max_data_loader_n_workers 0 "
        text += f"--t5xxl_max_token_length 16 --weighting_scheme logit_normal --optimizer_type {optimizer} "
        text += f"--learning_rate {1 if optimizer == 'SGD' else 1e-2}"
        places = ["--output_dir", str(tmp_path / name), "--train_data_dir", str(tmp_path / "data")]
        return [*model.arguments, *places, *text.split(), *more]

    done = torchrun(str(DROP_IN.with_name("sd3_train_network.py")), *arguments("two"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert script("sd3_train_network", arguments("one", "--gradient_accumulation_steps", "2")) == 0
    theirs, ours = (load_file(tmp_path / name / "lora.safetensors") for name in ("two", "one"))
    assert any(tensor.any() for name, tensor in ours.items() if "lora_up" in name and "te1" in name)
    for name, tensor in theirs.items() if optimizer == "SGD" else ():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)
    losses = [
        [line["loss"] for line in figures(tmp_path / name / "lora.metrics.jsonl")] for name in ("one", "two")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_an_error_of_one_process_ends_all_with_its_message(tmp_path: Path) -> None:
    program = tmp_path / "work.py"
    program.write_text(ONE_FAILS.format(root=str(ROOT)))
    done = torchrun(str(program))
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert errors[0] == "error: the second one is unwell"
    assert errors[1:] in ([], ["error: another process of this run has ended; what it said tells why"])
    assert "RuntimeError" not in done.stderr


def test_an_error_of_all_processes_is_told_once() -> None:
    done = torchrun(str(DROP_IN), "--lerning_rate", "1")
    assert done.returncode != 0
    assert done.stderr.count("did you mean --learning_rate?") == 1


@pytest.mark.parametrize(
    ("launcher", "world", "is_told"),
    [
        ("python accelerate launch --cpu --num_processes 2 train.py", 1, True),
        ("python accelerate launch --num_processes=8 train.py", 4, True),
        ("python accelerate launch --num_processes 2 train.py", 2, False),
        ("python accelerate launch train.py", 1, False),
        ("", 1, False),
    ],
)
def test_a_launch_of_fewer_processes_than_asked_for_is_noticed(
    launcher: str, world: int, is_told: bool
) -> None:
    line = missing_processes(world, launcher.split())
    assert (line is not None) == is_told
    if line is not None:
        assert f"started {world}" in line
        assert "torchrun --nproc_per_node" in line


def test_accelerate_that_starts_one_process_instead_of_two_is_noticed(tmp_path: Path) -> None:
    program = tmp_path / "start.py"
    program.write_text(STARTS.format(root=str(ROOT)))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run([*launch, str(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "accelerate was asked for --num_processes 2 and started 1" in done.stderr


@pytest.mark.parametrize("is_swapped", others_slow([False, True], [True]))
def test_two_processes_change_weights_within_the_backward_pass_alike(
    is_swapped: bool, tmp_path: Path
) -> None:
    model = tiny.flux(tmp_path / "model", hidden=32, heads=1, depth=3, depth_single=3)
    # With three images the second step of an epoch has one of its two.
    tiny.pictures(tmp_path / "data" / "1_cat", 4 if is_swapped else 3)
    fused = ["--fused_backward_pass", *(["--blocks_to_swap", "1"] if is_swapped else [])]

    def arguments(name: str, *more: str) -> list[str]:
        text = "--output_name full --resolution 64 --caption_extension .txt --max_train_epochs 2 --seed 5 "
        text += "--learning_rate 1e-3 --max_grad_norm 0 --cache_latents --cache_text_encoder_outputs "
        text += "--optimizer_type SGDNesterov --max_data_loader_n_workers 0 --learning_rate 1e-2"
        places = ["--output_dir", str(tmp_path / name), "--train_data_dir", str(tmp_path / "data")]
        return [*model.arguments, *places, *text.split(), *more]

    done = torchrun(str(DROP_IN.with_name("flux_train.py")), *arguments("two", *fused))
    assert done.returncode == 0, done.stderr[-3000:]
    assert script("flux_train", arguments("one", "--gradient_accumulation_steps", "2")) == 0
    theirs, ours = (load_file(tmp_path / name / "full.safetensors") for name in ("two", "one"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)
    before = load_file(model.transformer)["img_in.weight"]
    assert not torch.equal(theirs["img_in.weight"].to(before.dtype), before)
