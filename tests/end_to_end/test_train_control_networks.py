"""ControlNets and ControlNet-LLLites are trained whole: resumed, parted, saved, refused what cannot be."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests import tiny
from tests.runs import Runs, differing, others_slow

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-3 --cache_latents
"""
SMALL = ("--cond_emb_dim", "8", "--network_dim", "4")
KINDS = {
    "sd": "train_control_net",
    "xl": "sdxl_train_control_net",
    "lllite": "sdxl_train_control_net_lllite",
    "flux": "flux_train_control_net",
    "older sd": "train_controlnet",
    "older lllite": "sdxl_train_control_net_lllite_old",
}
FIRST = {
    "sd": "zero_convs.0.0.weight",
    "xl": "controlnet_down_blocks.0.weight",
    "lllite": "lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.up.0.weight",
    "flux": "controlnet_blocks.0.weight",
}
"""What is zero before training."""
GOES_ON = {
    "sd": "--controlnet_model_name_or_path",
    "xl": "--controlnet_model_path",
    "lllite": "--network_weights",
    "flux": "--controlnet_model_name_or_path",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Runs]:
    data = tmp_path_factory.mktemp("data")
    tiny.pictures(data / "images" / "1_sks cat", 2, (64, 64))
    tiny.pictures(data / "control", 2, (64, 64), seed=1, captions=None)
    sd, sdxl = tiny.sd(data / "sd").arguments, tiny.sdxl(data / "sdxl", depths=(0, 1, 1)).arguments
    flux = [*tiny.flux(data / "flux").arguments, "--t5xxl_max_token_length", "64"]
    models = {"sd": sd, "older sd": sd, "flux": flux}
    folders = ["--train_data_dir", str(data / "images"), "--conditioning_data_dir", str(data / "control")]
    return {
        kind: Runs(
            name,
            [*models.get(kind, sdxl), *folders],
            [
                *shlex.split(SHORT),
                *(["--cond_emb_dim", "8", "--network_dim", "4"] if "lllite" in kind else []),
            ],
            tmp_path_factory.mktemp(kind.replace(" ", "_")),
        )
        for kind, name in KINDS.items()
    }


@pytest.mark.parametrize("kind", others_slow(FIRST, {"lllite", "flux"}))
def test_a_resumed_run_equals_one_that_was_not_interrupted(kind: str, runs: dict[str, Runs]) -> None:
    run = runs[kind]
    whole = run.plain()
    assert whole[FIRST[kind]].abs().max() > 0
    run("half", "--max_train_steps", "1", "--save_state")
    state = str(run.outs / "half" / "model-state")
    assert differing(run("resumed", "--resume", state), whole) == []


@pytest.mark.parametrize("kind", others_slow(FIRST, {"lllite"}))
def test_training_goes_on_from_a_saved_file(kind: str, runs: dict[str, Runs]) -> None:
    run = runs[kind]
    before = run.plain()
    path = next(run.outs.glob("plain*/model.safetensors"))
    after = run("on", GOES_ON[kind], str(path), "--max_train_steps", "1", "--learning_rate", "1e-8")
    assert after.keys() == before.keys()
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["older sd", "older lllite"])
def test_older_names_of_scripts_train_the_same(kind: str, runs: dict[str, Runs]) -> None:
    assert differing(runs[kind]("older"), runs[kind.removeprefix("older ")].plain()) == []


MEMORY = {
    "checkpointed": "--gradient_checkpointing",
    "swapped": "--blocks_to_swap 2",
    "8 bits": "--mixed_precision bf16 --fp8_base",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FIRST)
@pytest.mark.parametrize("way", MEMORY)
def test_less_memory_trains_nearly_the_same(kind: str, way: str, runs: dict[str, Runs]) -> None:
    sgd = ("--optimizer_type", "SGD", "--max_grad_norm", "0", "--learning_rate", "1")
    plain, lean = runs[kind].plain(*sgd), runs[kind](way.replace(" ", "_"), *sgd, *shlex.split(MEMORY[way]))
    name = FIRST[kind]
    gap = float((lean[name].float() - plain[name]).norm() / plain[name].norm())
    print(f"{kind}, {way}: {gap:.1e}")
    assert gap < (0.2 if way == "8 bits" else 1e-5)


def test_files_say_what_they_are(runs: dict[str, Runs]) -> None:
    runs["lllite"].plain()
    with safe_open(next(runs["lllite"].outs.glob("plain*/model.safetensors")), "pt") as file:
        told = file.metadata()["modelspec.architecture"]
    assert told == "stable-diffusion-xl-v1-base/control-net-lllite"


def test_control_images_that_are_missing_are_named(
    runs: dict[str, Runs], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.pictures(tmp_path, 1, (64, 64), captions=None)
    line = runs["sd"].refusal(capfd, "--conditioning_data_dir", str(tmp_path), "--strict")
    assert "picture_01" in line


def test_a_file_for_another_model_is_refused(
    runs: dict[str, Runs], capfd: pytest.CaptureFixture[str]
) -> None:
    runs["lllite"].plain()
    path = next(runs["lllite"].outs.glob("plain*/model.safetensors"))
    capfd.readouterr()
    line = runs["sd"].refusal(capfd, "--controlnet_model_name_or_path", str(path))
    assert "it seems to be a ControlNet-LLLite" in line


def test_sizes_that_cannot_be_read_are_refused_before_training(
    runs: dict[str, Runs], capfd: pytest.CaptureFixture[str]
) -> None:
    line = runs["lllite"].refusal(capfd, "--resolution", "72")
    assert line.endswith("resolution is (72, 72); use multiples of 32")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd", "lllite"])
def test_two_processes_train_what_one_trains_with_accumulation(kind: str, runs: dict[str, Runs]) -> None:
    run = runs[kind]
    one = run("one", "--gradient_accumulation_steps", "2")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    drop_in = str(Path(__file__).parents[2] / "sd-scripts" / f"{run.name}.py")
    subprocess.run([*launcher, drop_in, *run.arguments("two")], check=True)
    two = load_file(run.outs / "two" / "model.safetensors")
    assert max(float((two[name] - one[name]).abs().max()) for name in one) < 1e-5


def test_files_have_the_names_that_other_programs_read(runs: dict[str, Runs]) -> None:
    assert {"input_hint_block.14.weight", "middle_block_out.0.weight"} <= runs["sd"].plain().keys()
    assert not any(name.startswith("output_blocks") for name in runs["sd"].plain())
    own = {"controlnet_blocks.1.weight", "input_hint_block.14.weight", "pos_embed_input.weight"}
    assert own <= runs["flux"].plain().keys()
    assert len(runs["flux"].plain()) == 86
