"""Whole Stable Diffusions are trained from files and folders, with and without their text encoders."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sfumato.cli.main import main, script
from tests import tiny
from tests.golden.derived import cases
from tests.pipelines import pipeline_from
from tests.runs import Runs, differing, figures, others_slow, refusal

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-3 --save_model_as safetensors --cache_latents
"""
DENOISER = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model."
TEXT_1, TEXT_2 = "conditioner.embedders.0.", "conditioner.embedders.1."
ENCODERS = ("--train_text_encoder",)
ONE_STEP = ("--max_train_steps", "1")
SGD = ("--optimizer_type", "SGD", "--max_grad_norm", "0")
ADAFACTOR = ("--optimizer_type", "adafactor", "--optimizer_args", "scale_parameter=False")
ADAFACTOR = (*ADAFACTOR, "relative_step=False", "warmup_init=False", "--max_grad_norm", "0")
BLOCKS = ("--block_lr", ",".join(["1e-3"] * 10 + ["0"] * 3 + ["2e-3"] * 9 + ["0"]))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_sks cat", 2, (64, 64))
    return folder


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyCheckpoint:
    return tiny.sd(tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyCheckpoint:
    return tiny.sdxl(tmp_path_factory.mktemp("sdxl"), depths=(0, 1, 1))


def runs_of(name: str, model: tiny.TinyCheckpoint, images: Path, outs: Path) -> Runs:
    return Runs(name, [*model.arguments, "--train_data_dir", str(images)], shlex.split(SHORT), outs)


@pytest.fixture(scope="module")
def db(sd: tiny.TinyCheckpoint, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_of("train_db", sd, images, tmp_path_factory.mktemp("db"))


@pytest.fixture(scope="module")
def ft(sd: tiny.TinyCheckpoint, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_of("fine_tune", sd, images, tmp_path_factory.mktemp("ft"))


@pytest.fixture(scope="module")
def xl(sdxl: tiny.TinyCheckpoint, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return runs_of("sdxl_train", sdxl, images, tmp_path_factory.mktemp("xl"))


def parts_moved(before: dict[str, Tensor], after: dict[str, Tensor], *parts: str) -> list[str]:
    """Return those of these parts that training changed; each must be changed as a whole or not at all."""
    assert after.keys() == before.keys()
    moved = []
    for part in parts:
        own = [name for name in before if name.startswith(part) and before[name].is_floating_point()]
        same = [name for name in own if torch.equal(after[name], before[name])]
        if len(same) < len(own):
            moved.append(part)
            assert same == []
    return moved


SD_CASES = {
    ("train_db", ()): [DENOISER, TEXT],
    ("train_db", ("--stop_text_encoder_training", "-1")): [DENOISER],
    ("fine_tune", ()): [DENOISER],
    ("fine_tune", ("--train_text_encoder", "--learning_rate_te", "1e-4")): [DENOISER, TEXT],
    ("fine_tune", ("--train_text_encoder", "--learning_rate", "0", "--learning_rate_te", "1e-4")): [TEXT],
}


@pytest.mark.parametrize(("name", "options"), others_slow(SD_CASES, [*SD_CASES][:2]))
def test_just_the_parts_that_are_trained_move(
    name: str, options: tuple[str, ...], db: Runs, ft: Runs, sd: tiny.TinyCheckpoint
) -> None:
    run = db if name == "train_db" else ft
    before = load_file(sd.path)
    assert parts_moved(before, run.plain(*options), DENOISER, TEXT, VAE) == SD_CASES[name, options]
    assert torch.equal(run.plain(*options)["betas"], before["betas"])


def test_text_encoders_of_sdxl_have_rates_of_their_own(xl: Runs, sdxl: tiny.TinyCheckpoint) -> None:
    before = load_file(sdxl.path)
    options = ("--train_text_encoder", "--learning_rate_te1", "0", "--learning_rate_te2", "1e-4")
    after = xl.plain(*options)
    positions = f"{TEXT_1}transformer.text_model.embeddings.position_ids"
    assert torch.equal(after[positions], before[positions])
    scale = f"{TEXT_2}model.logit_scale"  # which no image depends on
    assert torch.equal(after.pop(scale), before.pop(scale))
    assert parts_moved(before, after, DENOISER, TEXT_1, TEXT_2, VAE) == [DENOISER, TEXT_2]
    names = ["lr/unet", "lr/text_encoder2"]
    (line, *_) = figures(xl.outs / "plain0" / "model.metrics.jsonl")
    assert [name for name in line if name.startswith("lr/")] == names


def test_weights_behind_the_layer_that_is_listened_to_do_not_decay(db: Runs, sd: tiny.TinyCheckpoint) -> None:
    before, after = load_file(sd.path), db.plain("--clip_skip", "2")
    same = {name for name in before if name.startswith(TEXT) and torch.equal(before[name], after[name])}
    unused = f"{TEXT}transformer.text_model.encoder.layers.1."
    positions = f"{TEXT}transformer.text_model.embeddings.position_ids"
    assert same - {positions} == {name for name in before if name.startswith(unused)}


@pytest.mark.parametrize("fused", others_slow(["", "--fused_backward_pass"], [""]))
def test_a_text_encoder_stops_at_its_step_and_after_a_resume(fused: str, db: Runs) -> None:
    stop = (*fused.split(), "--stop_text_encoder_training", "1")
    once, whole = db.plain(*ONE_STEP, *fused.split()), db.plain("--max_train_steps", "3", *stop)
    moved = [name for name in once if not torch.equal(once[name], whole[name])]
    assert moved
    assert all(name.startswith(DENOISER) for name in moved)
    db("first", *stop, "--save_state")
    state = str(db.outs / "first" / "model-state")
    assert differing(whole, db("second", "--max_train_steps", "3", *stop, "--resume", state)) == []


FROM_FOLDERS = {
    "train_db": ((), ["text_encoder", "unet"]),
    "fine_tune": ((), ["unet"]),
    "sdxl_train": (
        ("--train_text_encoder", "--learning_rate_te2", "0"),
        ["text_encoder", "unet"],
    ),
}


def differs(one: object, other: object) -> bool:
    """Return whether these are models with different weights."""
    if not (isinstance(one, torch.nn.Module) and isinstance(other, torch.nn.Module)):
        return False
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return not all(torch.equal(own, theirs) for own, theirs in pairs)


@pytest.mark.parametrize("name", others_slow(FROM_FOLDERS, ["train_db"]))
def test_a_folder_is_saved_as_a_folder_that_diffusers_loads(name: str, images: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    make = tiny.sdxl if name == "sdxl_train" else tiny.sd
    model = make(tmp_path / "model", as_folder=True)
    options, moved = FROM_FOLDERS[name]
    run = runs_of(name, model, images, tmp_path / "out")
    arguments = run.arguments("folder", *options)
    del arguments[(place := arguments.index("--save_model_as")) : place + 2]
    assert script(name, arguments) == 0
    saved = tmp_path / "out" / "folder" / "model"
    before, after = (DiffusionPipeline.from_pretrained(place) for place in (model.path, saved))
    changed = [part for part, own in before.components.items() if differs(own, getattr(after, part))]
    assert sorted(changed) == moved
    again = ["--pretrained_model_name_or_path", str(saved), *ONE_STEP]
    assert script(name, [*run.arguments("again", *options), *again]) == 0


def test_saved_files_are_the_source_where_nothing_is_learned(db: Runs, sd: tiny.TinyCheckpoint) -> None:
    assert differing(load_file(sd.path), db("nothing", *SGD, "--learning_rate", "1e-30", *ONE_STEP)) == []


def test_pickled_files_count_on_and_hold_another_autoencoder(images: Path, tmp_path: Path, db: Runs) -> None:
    model = tiny.sd(tmp_path / "old", suffix=".ckpt")
    other = tiny.sd(tmp_path / "other", seed=7)
    run = runs_of("train_db", model, images, tmp_path)
    pickled = ("--vae", str(other.path), "--save_model_as", "ckpt", "--save_every_n_steps", "1")
    arguments = run.arguments("out", *pickled)
    assert script("train_db", arguments) == 0
    saved = torch.load(tmp_path / "out" / "model.ckpt", weights_only=True)
    assert (saved["epoch"], saved["global_step"]) == (3 + 1, 700 + 2)
    middle = torch.load(tmp_path / "out" / "model-step00000001.ckpt", weights_only=True)
    assert (middle["epoch"], middle["global_step"]) == (3 + 0, 700 + 1)
    theirs = load_file(other.path)
    own = {name: tensor for name, tensor in saved["state_dict"].items() if name.startswith(VAE)}
    assert own
    assert differing(own, {name: theirs[name] for name in own}) == []


def test_files_say_what_they_are_and_load_in_diffusers(xl: Runs, sdxl: tiny.TinyCheckpoint) -> None:
    xl("half", *ONE_STEP, "--save_precision", "fp16", "--metadata_author", "me")
    path = xl.outs / "half" / "model.safetensors"
    with safe_open(path, "pt") as file:
        told = file.metadata()
    assert told["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    assert told["modelspec.author"] == "me"
    kinds = {tensor.dtype for tensor in load_file(path).values()}
    assert kinds == {torch.float16, torch.int64}
    loaded = pipeline_from(path, "sdxl", sdxl.tokenizers)
    assert sum(weight.numel() for weight in loaded.unet.parameters()) > 1e6


def test_blocks_with_rate_zero_stay_and_the_others_are_told_apart(
    xl: Runs, sdxl: tiny.TinyCheckpoint
) -> None:
    before, after = load_file(sdxl.path), xl("blocks", *BLOCKS)
    still = (f"{DENOISER}middle_block.", f"{DENOISER}out.")
    same = [name for name in before if name.startswith(DENOISER) and torch.equal(before[name], after[name])]
    assert sorted(same) == sorted(name for name in before if name.startswith(still))
    (recorded,) = (case for case in cases("k_sdxl_train") if case["id"] == "block_zero")
    (line, *_) = figures(xl.outs / "blocks" / "model.metrics.jsonl")
    rates = {name: rate for name, rate in line.items() if name.startswith("lr/block")}
    assert [*rates] == [name for name in recorded["logged"] if "block" in name]
    assert rates["lr/block0"] == pytest.approx(1e-3)
    assert rates["lr/block21"] == pytest.approx(2e-3)


@pytest.mark.parametrize("name", others_slow(["train_db", "sdxl_train"], ["train_db"]))
def test_a_negative_rate_moves_away_from_the_images(
    name: str, db: Runs, xl: Runs, sd: tiny.TinyCheckpoint, sdxl: tiny.TinyCheckpoint
) -> None:
    run, model = (db, sd) if name == "train_db" else (xl, sdxl)
    there = run("there", *SGD, *ONE_STEP)
    back = run("back", *SGD, *ONE_STEP, "--learning_rate=-1e-3")
    weight = f"{DENOISER}out.2.weight"
    before = load_file(model.path)[weight]
    assert (there[weight] - before).abs().max() > 1e-5
    assert torch.allclose(there[weight] - before, before - back[weight], atol=1e-7)


REGULAR = "weights of regularisation images"
LOSSES = {
    "masked": ("--alpha_mask",),
    "huber": ("--loss_type", "huber", "--huber_c", "0.2"),
    "velocity-like": ("--v_pred_like_loss", "0.5"),
    REGULAR: ("--prior_loss_weight", "0.25"),
}
TRAINERS = ("train_db", "fine_tune", "sdxl_train")


@pytest.mark.parametrize(
    ("name", "what"),
    others_slow(product(TRAINERS, LOSSES), [("train_db", "masked"), ("train_db", REGULAR)]),
)
def test_loss_options_act(
    name: str, what: str, db: Runs, ft: Runs, xl: Runs, tmp_path: Path, images: Path
) -> None:
    run = {"train_db": db, "fine_tune": ft, "sdxl_train": xl}[name]
    for path in sorted((images / "1_sks cat").glob("*.png")):
        picture = Image.open(path).convert("RGBA")
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        (tmp_path / "masked" / "1_sks").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "masked" / "1_sks" / path.name)
    tiny.pictures(tmp_path / "others" / "1_cat", 1, (64, 64), seed=9)
    data = ("--train_data_dir", str(tmp_path / "masked"), "--reg_data_dir", str(tmp_path / "others"))
    data = (*data, "--train_batch_size", "4", *ONE_STEP)
    (without,), (changed,) = _losses(run, "l0", *data), _losses(run, "l1", *data, *LOSSES[what])
    assert abs(changed - without) > 1e-3 * without


def _losses(run: Runs, place: str, *options: str) -> list[float]:
    run(place, *options)
    return [line["loss"] for line in figures(run.outs / place / "model.metrics.jsonl")]


FORMATS = {
    "bf16": ("--mixed_precision", "bf16"),
    "bf16 whole": ("--mixed_precision", "bf16", "--full_bf16", "--fused_backward_pass", *ADAFACTOR),
    "checkpointed": ("--gradient_checkpointing",),
}


@pytest.mark.parametrize(
    ("name", "what"),
    others_slow(product(TRAINERS, FORMATS), [("fine_tune", "checkpointed")]),
)
def test_every_format_trains(name: str, what: str, db: Runs, ft: Runs, xl: Runs) -> None:
    run = {"train_db": db, "fine_tune": ft, "sdxl_train": xl}[name]
    options = () if name == "train_db" else ENCODERS
    plain = _losses(run, "plain", *options)
    other = _losses(run, "other", *options, *FORMATS[what])
    assert other == pytest.approx(plain, rel=1e-5 if what == "checkpointed" else 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_two_processes_train_what_one_does(
    name: str, db: Runs, ft: Runs, xl: Runs, images: Path, tmp_path: Path
) -> None:
    run = {"train_db": db, "fine_tune": ft, "sdxl_train": xl}[name]
    options = () if name == "train_db" else ENCODERS
    alone = run("alone", *options, *SGD, "--gradient_accumulation_steps", "2")
    root = Path(__file__).parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(root / "sd-scripts" / f"{name}.py"), *run.arguments("both", *options, *SGD)]
    subprocess.run(command, check=True, capture_output=True)
    both = load_file(run.outs / "both" / "model.safetensors")
    assert max((both[n].double() - alone[n].double()).abs().max().item() for n in alone) < 1e-6


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("fine_tune", ("--learning_rate", "0"), "--learning_rate is 0, so nothing would be trained"),
        ("sdxl_train", ("--block_lr", "1e-4,0"), "--block_lr has 2 rates, and the denoiser has 23 blocks"),
        ("sdxl_train", ("--block_lr", "fast"), "--block_lr is fast; give numbers with commas"),
        ("sdxl_train", ("--block_lr", ",".join(["0"] * 23)), "so nothing would be trained"),
        (
            "sdxl_train",
            ("--train_text_encoder", "--cache_text_encoder_outputs"),
            "every text encoder is trained",
        ),
        ("train_db", ("--stop_text_encoder_training", "-2"), "use -1 or more"),
        (
            "train_db",
            ("--learning_rate", "0", "--learning_rate_te", "1e-4", "--stop_text_encoder_training", "1"),
            "--stop_text_encoder_training 1 leaves nothing to train after that",
        ),
        (
            "train_db",
            ("--strict", "--learning_rate_te", "1e-4", "--stop_text_encoder_training", "-1"),
            "rates of text encoders have no effect with --stop_text_encoder_training -1",
        ),
        (
            "sdxl_train",
            ("--strict", *ENCODERS, "--learning_rate", "0", "--learning_rate_te1", "1e-4", *BLOCKS),
            "--block_lr has no effect: --learning_rate is 0",
        ),
        (
            "train_db",
            ("--strict", "--fp8_base", "--mixed_precision", "bf16"),
            "--fp8_base has no effect: steps run nothing but what is trained",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    name: str,
    options: Sequence[str],
    complaint: str,
    db: Runs,
    ft: Runs,
    xl: Runs,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = {"train_db": db, "fine_tune": ft, "sdxl_train": xl}[name]
    assert complaint in run.refusal(capfd, *options)


def test_the_command_is_strict_about_rates_that_nothing_has(
    ft: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "sd", "full", *ft.arguments("strict", "--learning_rate_te", "1e-4")]) == 2
    assert "--learning_rate_te has no effect without --train_text_encoder" in refusal(capfd)
