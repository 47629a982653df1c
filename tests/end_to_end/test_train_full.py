"""Whole models are trained, saved and resumed, with every way of changing weights early."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sfumato.cli.main import main, script
from tests import tiny
from tests.runs import Runs, differing, figures, others_slow

SHORT = """
--resolution 32 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 4 --seed 5
--learning_rate 1e-3 --cache_latents_to_disk --cache_text_encoder_outputs_to_disk --max_grad_norm 0
"""
ADAFACTOR = ("--optimizer_type", "adafactor", "--optimizer_args")
ADAFACTOR = (*ADAFACTOR, "relative_step=False", "scale_parameter=False", "warmup_init=False")
OPTIMIZERS = {
    "AdamW": (),
    "AdamW8bit": ("--optimizer_type", "AdamW8bit"),
    "Adafactor": (*ADAFACTOR, "--lr_scheduler", "constant_with_warmup", "--lr_warmup_steps", "2"),
    "Adafactor with rates of its own": ("--optimizer_type", "adafactor"),
    "Lion": ("--optimizer_type", "Lion"),
    "SGD with momentum": ("--optimizer_type", "SGDNesterov", "--lr_scheduler", "cosine"),
    "schedule-free": ("--optimizer_type", "AdamWScheduleFree"),
}
FUSED = {
    "weight by weight": ("--fused_backward_pass",),
    "weight by weight, swapped": ("--fused_backward_pass", "--blocks_to_swap", "1"),
    "block by block, swapped, checkpointed": (
        *("--blockwise_fused_optimizers", "--blocks_to_swap", "2", "--gradient_checkpointing"),
    ),
    "in three groups, checkpoints in RAM": (
        *("--fused_optimizer_groups", "3", "--cpu_offload_checkpointing"),
    ),
}
OFTEN = [("Adafactor", fused) for fused in FUSED] + [
    (name, "weight by weight, swapped") for name in OPTIMIZERS
]
"""What normal runs try: every way with one optimizer, and every optimizer in one way."""
ALL_ON = ("--fused_backward_pass", "--blocks_to_swap", "1", "--gradient_checkpointing")
ROUNDED = ("AdamW", "AdamW8bit", "Adafactor", "schedule-free")
BF16 = ("--mixed_precision", "bf16", "--full_bf16")

PAGE = """
--pretrained_model_name_or_path flux1-dev.safetensors  --clip_l clip_l.safetensors
--t5xxl t5xxl_fp16.safetensors --ae ae_dev.safetensors
--save_model_as safetensors --sdpa --persistent_data_loader_workers --max_data_loader_n_workers 2
--seed 42 --gradient_checkpointing --mixed_precision bf16 --save_precision bf16
--dataset_config dataset_1024_bs1.toml  --output_dir path/to/output/dir --output_name output-name
--learning_rate 5e-5 --max_train_epochs 4  --sdpa --highvram --cache_text_encoder_outputs_to_disk
--cache_latents_to_disk --save_every_n_epochs 1
--optimizer_type adafactor --optimizer_args "relative_step=False" "scale_parameter=False" "warmup_init=False"
--lr_scheduler constant_with_warmup --max_grad_norm 0.0
--timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --guidance_scale 1.0
--fused_backward_pass  --blocks_to_swap {num} --full_bf16
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"), hidden=32, heads=1, depth=3, depth_single=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_sks cat", 2, (32, 32))
    return folder


@pytest.fixture(scope="module")
def run(model: tiny.TinyFlux, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    places = [*model.arguments, "--train_data_dir", str(images)]
    runs = Runs("flux_train", places, shlex.split(SHORT), tmp_path_factory.mktemp("outs"))
    runs.plain()
    return runs


def losses_of(out: Path) -> list[float]:
    return [line["loss"] for line in figures(out / "model.metrics.jsonl")]


def test_training_moves_every_weight_and_saves_it_under_its_published_name(
    model: tiny.TinyFlux, run: Runs
) -> None:
    before = load_file(model.transformer)
    after = run.plain()
    assert after.keys() == before.keys()
    unmoved = [name for name in before if torch.equal(after[name], before[name].float())]
    assert unmoved == []
    with safe_open(run.outs / "plain0" / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"] == "flux-1-dev"
    assert metadata["modelspec.title"] == "model"
    assert [key for key in metadata if not key.startswith("modelspec.")] == []


@pytest.mark.parametrize(("optimizer", "fused"), others_slow(product(OPTIMIZERS, FUSED), OFTEN))
def test_weights_changed_within_the_backward_pass_are_the_same(optimizer: str, fused: str, run: Runs) -> None:
    options = OPTIMIZERS[optimizer]
    assert differing(run.plain(*options), run("fused", *options, *FUSED[fused])) == []


def test_gradients_accumulate_until_the_last_backward_pass_of_a_step(run: Runs) -> None:
    options = ("--gradient_accumulation_steps", "2", "--max_train_steps", "2")
    assert differing(run.plain(*options), run("fused", *options, "--blockwise_fused_optimizers")) == []
    swapped = run("both", *options, "--fused_backward_pass", "--blocks_to_swap", "2")
    assert differing(run.plain(*options), swapped) == []


@pytest.mark.parametrize("optimizer", others_slow(ROUNDED, ["AdamW8bit", "Adafactor"]))
def test_stochastic_rounding_does_not_depend_on_when_weights_are_changed(optimizer: str, run: Runs) -> None:
    options = (*OPTIMIZERS[optimizer], *BF16)
    assert differing(run.plain(*options), run("fused", *options, *FUSED["weight by weight"])) == []
    swap = ("--blockwise_fused_optimizers", "--blocks_to_swap", "2")
    assert differing(run.plain(*options), run("fused", *options, *swap)) == []
    assert {tensor.dtype for tensor in run.plain(*options).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("optimizer", "precision"),
    others_slow(
        [("AdamW8bit", "bf16"), ("Adafactor", "bf16"), ("schedule-free", "bf16"), ("schedule-free", "float")],
        [("Adafactor", "bf16"), ("schedule-free", "float")],
    ),
)
def test_a_run_with_everything_on_resumes_bit_for_bit(
    optimizer: str, precision: str, run: Runs, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1 --d 1\n")
    shown = ("--sample_prompts", str(prompts), "--sample_every_n_steps", "1")
    options = (*OPTIMIZERS[optimizer], *ALL_ON, *(BF16 if precision == "bf16" else ()))
    whole = run("whole", *options)
    run("first", *options, *shown, "--save_every_n_steps", "2", "--save_state")
    state = run.outs / "first" / "model-step00000002-state"
    assert (state / "weights.safetensors").exists() == (optimizer != "schedule-free")
    (run.outs / "first" / "model-step00000002.safetensors").unlink()
    assert differing(whole, run("second", *options, "--resume", str(state))) == []
    assert len(list((run.outs / "first" / "sample").glob("*.png"))) >= 4


def test_a_state_shares_the_bytes_of_the_file_beside_it(run: Runs) -> None:
    run("state", *OPTIMIZERS["Adafactor"], "--save_state")
    folder = run.outs / "state"
    saved, shared = folder / "model.safetensors", folder / "model-state" / "weights.safetensors"
    assert saved.stat().st_ino == shared.stat().st_ino
    assert (folder / "model-state" / "state.safetensors").stat().st_size < saved.stat().st_size / 5


def test_previews_and_metrics_follow_what_is_trained(run: Runs, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1 --d 1\n")
    shown = ["--sample_prompts", str(prompts), "--sample_every_n_steps", "1"]
    assert differing(run.plain(), run("shown", *ALL_ON, *shown)) == []
    drawn = {path.read_bytes() for path in (run.outs / "shown" / "sample").glob("*.png")}
    assert len(drawn) == 4
    losses = losses_of(run.outs / "shown")
    assert losses == pytest.approx(losses_of(run.outs / "plain0"), rel=1e-6)
    assert len(losses) == 4


def test_a_folder_in_diffusers_layout_holds_the_same_model(run: Runs) -> None:
    assert script("flux_train", run.arguments("folder", "--save_model_as", "diffusers")) == 0
    folder = run.outs / "folder" / "model"
    diffusers = pytest.importorskip("diffusers")
    loaded = diffusers.FluxTransformer2DModel.from_pretrained(folder, subfolder="transformer")
    assert loaded.config.num_single_layers == 4
    plain = run.plain()
    ours = loaded.state_dict()["single_transformer_blocks.3.proj_out.weight"]
    assert torch.equal(ours, plain["single_blocks.3.linear2.weight"])
    arguments = run.arguments("again", "--max_train_steps", "1")
    arguments[1] = str(folder)
    assert script("flux_train", arguments) == 0
    again = load_file(run.outs / "again" / "model.safetensors")
    assert again.keys() == plain.keys()
    drift = (again["img_in.weight"] - plain["img_in.weight"]).abs().max()
    assert 0 < drift < 2e-3


def test_files_are_cast_or_pickled_if_asked(run: Runs) -> None:
    assert script("flux_train", run.arguments("half", "--save_precision", "fp16", "--save_state")) == 0
    half = load_file(run.outs / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}
    assert not (run.outs / "half" / "model-state" / "weights.safetensors").exists()
    assert script("flux_train", run.arguments("pickled", "--save_model_as", "ckpt")) == 0
    pickled = torch.load(run.outs / "pickled" / "model.ckpt", weights_only=True)
    assert differing(run.plain(), pickled) == []


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--fused_backward_pass", "--blockwise_fused_optimizers"), "excludes --blockwise_fused_optimizers"),
        (("--fused_backward_pass", "--optimizer_type", "Prodigy"), "cannot be used with Prodigy"),
        (("--blockwise_fused_optimizers", "--optimizer_type", "DAdaptAdam"), "used with DAdaptAdam"),
        (("--fused_optimizer_groups", "2", "--optimizer_type", "Prodigy"), "cannot be used with Prodigy"),
        (("--fused_backward_pass", "--mixed_precision", "fp16"), "needs --mixed_precision bf16"),
        (("--blocks_to_swap", "2"), "--blocks_to_swap 2 needs --fused_backward_pass or --blockwise"),
        (("--double_blocks_to_swap", "1"), "--double_blocks_to_swap 1 needs --fused_backward_pass or"),
        (("--blocks_to_swap", "2", "--fused_optimizer_groups", "2"), "--blocks_to_swap 2 needs --fused_bac"),
        (("--full_bf16",), "--full_bf16 needs --mixed_precision bf16"),
        (("--full_fp16",), "--full_fp16 needs --mixed_precision fp16"),
        (("--learning_rate", "0"), "--learning_rate is 0"),
        (("--save_model_as", "pt"), "invalid choice: 'pt'"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_loaded(
    options: Sequence[str], complaint: str, run: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert complaint in run.refusal(capfd, *options)


def test_older_spellings_are_converted(run: Runs, capfd: pytest.CaptureFixture[str]) -> None:
    older = ("--double_blocks_to_swap", "1", "--single_blocks_to_swap", "3", "--skip_latents_validity_check")
    swapped = run("older", *older, "--fused_backward_pass", "--fused_optimizer_groups", "2")
    shown = capfd.readouterr().err
    assert "--double_blocks_to_swap and --single_blocks_to_swap are read as blocks_to_swap: 2" in shown
    assert "--skip_latents_validity_check is read as skip_cache_check" in shown
    assert "fused_optimizer_groups is left out" in shown
    assert "blocks, " in shown
    assert differing(run.plain(), swapped) == []


@pytest.mark.parametrize("num", others_slow([8, 28], [8]))
def test_the_command_of_sd_scripts_page_works(
    num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As deep as the real one, so that as many blocks can be swapped.
    model = tiny.flux(tmp_path, hidden=16, heads=1, depth=19, depth_single=38)
    model.t5xxl.rename(tmp_path / "t5xxl_fp16.safetensors")
    model.ae.rename(tmp_path / "ae_dev.safetensors")
    tiny.pictures(tmp_path / "images", 1, (32, 32))
    (tmp_path / "dataset_1024_bs1.toml").write_text(
        "[[datasets]]\nresolution = 32\nbatch_size = 1\ncaption_extension = '.txt'\n"
        "[[datasets.subsets]]\nimage_dir = 'images'\nnum_repeats = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    assert script("flux_train", shlex.split(PAGE.format(num=num))) == 0
    out = tmp_path / "path/to/output/dir"
    saved = sorted(path.name for path in out.glob("*.safetensors"))
    assert saved == [*(f"output-name-{n:06d}.safetensors" for n in (1, 2, 3)), "output-name.safetensors"]
    before, after = load_file(model.transformer), load_file(out / "output-name.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    moved = sum(int((after[name] != before[name]).sum()) for name in before)
    assert moved > 0.01 * sum(tensor.numel() for tensor in before.values())


def test_the_command_of_this_program_does_the_same(run: Runs) -> None:
    assert main(["train", "flux", "full", *run.arguments("ours")]) == 0
    assert differing(run.plain(), load_file(run.outs / "ours" / "model.safetensors")) == []
