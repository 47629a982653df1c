"""Runs that save memory train bit for bit what plain runs train."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sfumato.cli.main import script
from tests import tiny
from tests.runs import Known, Runs, differing

SHORT = """
--resolution 32 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 3 --seed 5
--learning_rate 1e-2 --network_module networks.lora_flux --network_dim 2 --network_train_unet_only
--cache_latents --cache_text_encoder_outputs
"""
SINGLE = ("--network_args", "train_blocks=single")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"), depth=4, depth_single=6)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_sks cat", 2, (32, 32))
    return folder


@pytest.fixture(scope="module")
def plain_runs() -> Known:
    return {}


@pytest.fixture
def run(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    plain_runs: Known,
) -> Runs:
    places = [*model.arguments, "--train_data_dir", str(images)]
    return Runs("flux_train_network", places, SHORT.split(), tmp_path, plain_runs)


@pytest.mark.parametrize(
    ("num", "travelling", "options"), [("1", 4, ()), ("5", 10, ("--gradient_checkpointing",))]
)
def test_swapped_blocks_train_what_resident_ones_train(
    num: str, travelling: int, options: tuple[str, ...], run: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    swapped = run("swapped", *options, "--blocks_to_swap", num)
    assert f"{travelling} of 10 blocks" in capfd.readouterr().err
    assert differing(run.plain(), swapped) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("train_network", ("--blocks_to_swap", "5")),
        pytest.param(
            "sdxl_train_network",
            ("--blocks_to_swap", "3", "--gradient_checkpointing"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_swapped_blocks_of_a_unet_train_what_resident_ones_train(
    name: str, options: tuple[str, ...], images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny.sd(tmp_path) if name == "train_network" else tiny.sdxl(tmp_path)
    places = [*model.arguments, "--train_data_dir", str(images)]
    short = SHORT.replace("lora_flux", "lora").replace("--cache_text_encoder_outputs", "").split()
    more = ["--resolution", "64", "--max_train_steps", "2", "--mixed_precision", "bf16"]
    run = Runs(name, places, [*short, *more], tmp_path / "outs")
    swapped = run("swapped", *options)
    assert "blocks, " in capfd.readouterr().err
    assert differing(run.plain(), swapped) == []


def test_swapping_goes_with_8_bits_accumulation_and_adapters_in_the_base(run: Runs) -> None:
    run("start")
    file = str(run.outs / "start" / "model.safetensors")
    shared = ["--mixed_precision", "bf16", "--fp8_base", "--base_weights", file]
    shared += ["--gradient_accumulation_steps", "2", "--gradient_checkpointing", "--max_train_steps", "2"]
    assert differing(run.plain(*shared), run("swapped", *shared, "--blocks_to_swap", "4")) == []


def test_split_mode_trains_single_blocks_as_a_plain_run_does(
    run: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = run.plain(*SINGLE)
    capfd.readouterr()
    assert differing(plain, run("split", *SINGLE, "--split_mode")) == []
    assert "4 of 10 blocks" in capfd.readouterr().err
    both = run("both", *SINGLE, "--split_mode", "--blocks_to_swap", "1")
    assert differing(plain, both) == []
    assert "split_mode is left out" in capfd.readouterr().err


def test_inputs_of_blocks_can_wait_in_main_memory(run: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    assert differing(run.plain(), run("away", "--cpu_offload_checkpointing")) == []
    assert "--cpu_offload_checkpointing sets gradient_checkpointing" in capfd.readouterr().err


def test_previews_amid_training_show_the_same_and_disturb_nothing(run: Runs, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 3 --d 1\na dog --w 64 --h 96 --s 2 --d 2\n")
    shown = ["--sample_prompts", str(prompts), "--sample_every_n_steps", "1", "--sample_at_first"]
    assert differing(run.plain(), run("resident", *shown)) == []
    assert differing(run.plain(), run("swapped", *shown, "--blocks_to_swap", "5")) == []
    drawn = [sorted((run.outs / name / "sample").glob("*.png")) for name in ("resident", "swapped")]
    assert [len(files) for files in drawn] == [8, 8]
    for one, other in zip(*drawn, strict=True):
        assert Image.open(one).tobytes() == Image.open(other).tobytes()


def test_a_swapped_run_resumes_bit_for_bit(run: Runs) -> None:
    swap = ["--blocks_to_swap", "3", "--gradient_checkpointing"]
    run("first", *swap, "--max_train_steps", "2", "--save_state")
    state = str(run.outs / "first" / "model-state")
    assert differing(run.plain(), run("second", *swap, "--resume", state)) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (
            ("--blocks_to_swap", "6"),
            "--blocks_to_swap is 6; with this model, whose small blocks count less, use 5",
        ),
        (("--blocks_to_swap", "-1"), "--blocks_to_swap is -1; use 0 or more"),
        (
            ("--blocks_to_swap", "2", "--cpu_offload_checkpointing"),
            "--cpu_offload_checkpointing excludes --blocks_to_swap 2",
        ),
        (
            (*SINGLE, "--split_mode", "--cpu_offload_checkpointing"),
            "--cpu_offload_checkpointing excludes --split_mode",
        ),
        (("--split_mode",), "--split_mode needs --network_args train_blocks=single"),
        (
            ("--torch_compile", "--dynamo_backend", "eager", "--blocks_to_swap", "2"),
            "--torch_compile needs --gradient_checkpointing: blocks are swapped",
        ),
        (("--torch_compile", "--dynamo_backend", "fx2trt"), "--dynamo_backend fx2trt is not installed here"),
        (("--torch_compile", "--dynamo_backend", "tvm"), "--dynamo_backend tvm is not installed here"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_loaded(
    options: tuple[str, ...], complaint: str, run: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert complaint in run.refusal(capfd, *options)


def test_a_missing_compiler_is_one_line(
    run: Runs, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sfumato.nn.compilation.shutil.which", lambda name: None)
    assert "--torch_compile needs a C++ compiler" in run.refusal(capfd, "--torch_compile")


def test_files_are_mapped_unless_that_is_disabled(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped: list[int] = []
    original = mmap.mmap

    def watched(*args: Any, **kwargs: Any) -> mmap.mmap:
        mapped.append(args[1])
        return original(*args, **kwargs)

    monkeypatch.setattr("sfumato.checkpoints.tensor_file.mmap.mmap", watched)
    run("mapped", "--max_train_steps", "1")
    assert len(mapped) >= 4
    mapped.clear()
    assert differing(run.plain(), run("read", "--disable_mmap_load_safetensors")) == []
    assert mapped == []


# PyTorch's compiler looks at an attribute that warns, and hides the warning by its own means.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_train_what_plain_ones_train_swapped_too(run: Runs) -> None:
    torch._dynamo.reset()
    swap = ["--blocks_to_swap", "3", "--gradient_checkpointing"]
    compiled = run("compiled", "--torch_compile", "--dynamo_backend", "eager", *swap)
    for name, tensor in run.plain().items():
        torch.testing.assert_close(tensor, compiled[name], rtol=1e-3, atol=1e-5, msg=name)


OPTIMIZERS = ("AdamW", "AdamW8bit", "Lion", "Prodigy", "AdamWScheduleFree", "SGDNesterov", "DAdaptAdam")
SAVINGS = (
    ("--blocks_to_swap", "3"),
    ("--blocks_to_swap", "5", "--gradient_checkpointing"),
    ("--cpu_offload_checkpointing",),
)


@pytest.mark.slow
@pytest.mark.parametrize("saving", SAVINGS, ids=" ".join)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_learns_the_same(optimizer: str, saving: tuple[str, ...], run: Runs) -> None:
    kind = ("--optimizer_type", optimizer)
    assert differing(run.plain(*kind), run("saving", *kind, *saving)) == []


@pytest.mark.slow
def test_a_text_encoder_learns_through_the_front_in_split_mode(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    places = ["--train_data_dir", str(images), "--output_name", "model"]
    short = SHORT.replace("--network_train_unet_only", "").replace("--cache_text_encoder_outputs", "")
    results = []
    for name, options in {"plain": [], "split": ["--split_mode"]}.items():
        out = ["--output_dir", str(tmp_path / name), *SINGLE, *options]
        assert script("flux_train_network", [*model.arguments, *places, *short.split(), *out]) == 0
        results.append(load_file(tmp_path / name / "model.safetensors"))
    assert differing(*results) == []
    assert any(tensor.any() for name, tensor in results[0].items() if "lora_te1" in name and "up" in name)
