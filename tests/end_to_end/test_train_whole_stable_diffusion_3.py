"""Whole Stable Diffusion 3 models are trained, with and without their text encoders."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.families.sd3.text import CLIP_G, CLIP_L, T5XXL
from sfumato.models.interface.family import DENOISER
from tests import tiny
from tests.runs import Runs, differing, figures, others_slow

SHORT = shlex.split(
    "--resolution 64 --caption_extension .txt --seed 1 --learning_rate 1e-3 --max_train_steps 2 "
    "--max_data_loader_n_workers 0 --t5xxl_max_token_length 16 --save_model_as safetensors"
)
CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
ENCODERS = ("--train_text_encoder", "--cache_latents")
ALL_ENCODERS = (*ENCODERS, "--train_t5xxl")
SGD = ("--optimizer_type", "SGD", "--max_grad_norm", "0")
ADAFACTOR = shlex.split(
    "--optimizer_type adafactor --max_grad_norm 0 "
    "--optimizer_args scale_parameter=False relative_step=False warmup_init=False"
)
PAGE = """
learning_rate = 1e-6 # seems to depend on the batch size
optimizer_type = "adafactor"
optimizer_args = [ "scale_parameter=False", "relative_step=False", "warmup_init=False" ]
cache_text_encoder_outputs = true
cache_text_encoder_outputs_to_disk = true
vae_batch_size = 1
text_encoder_batch_size = 4
cache_latents = true
cache_latents_to_disk = true
"""
BLOCKS = "model.diffusion_model.joint_blocks."
TEXT = {part: f"text_encoders.{part}.transformer." for part in (CLIP_L, CLIP_G, T5XXL)}
WHOLE = {DENOISER: "model.diffusion_model.", **TEXT, "vae": "first_stage_model."}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinySd3:
    return tiny.sd3(tmp_path_factory.mktemp("model"), hidden=64, depth=4, form="5-medium")


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinySd3:
    """The same model with text encoders in files of their own."""
    return tiny.sd3(tmp_path_factory.mktemp("apart"), hidden=64, depth=4, form="5-medium", in_one=False)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_cat", 2)
    return folder


@pytest.fixture(scope="module")
def runs(model: tiny.TinySd3, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    places = [*model.arguments, "--train_data_dir", str(images)]
    return Runs("sd3_train", places, SHORT, tmp_path_factory.mktemp("outs"))


@pytest.fixture(scope="module")
def apart_runs(apart: tiny.TinySd3, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    places = [*apart.arguments, "--train_data_dir", str(images)]
    return Runs("sd3_train", places, SHORT, tmp_path_factory.mktemp("apart_outs"))


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Return the parts that training changed; both files hold the same, but for a projection."""
    assert before.keys() <= after.keys()
    assert after.keys() - before.keys() <= {f"{TEXT[CLIP_L]}text_projection.weight"}
    same = {name for name in before if torch.equal(after[name], before[name])}
    return [part for part, prefix in WHOLE.items() if any(n.startswith(prefix) for n in before.keys() - same)]


def test_the_settings_of_the_page_train_with_all_caches_and_then_from_these_alone(
    runs: Runs, images: Path, tmp_path: Path, model: tiny.TinySd3, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "page.toml"
    settings.write_text(PAGE, encoding="utf-8")
    options = ("--config_file", str(settings), "--learning_rate", "1e-4", "--mixed_precision", "bf16")
    first = runs("first", *options)
    assert moved(load_file(model.path), first) == [DENOISER]
    endings = ("_0064x0064_sd3.npz", "_sd3_te.npz")
    made = {path.name.removeprefix("picture_00") for path in (images / "1_cat").glob("picture_00_*")}
    assert made == {*endings}
    capfd.readouterr()
    assert differing(first, runs("again", *options)) == []
    shown = capfd.readouterr().err
    assert "loading denoiser" in shown
    assert not any(f"loading {part}" in shown for part in (CLIP_L, CLIP_G, T5XXL, "vae"))


RATES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "the denoiser alone": (CACHED, [DENOISER]),
    "with both CLIPs": (ENCODERS, [DENOISER, CLIP_L, CLIP_G]),
    "CLIP-G alone": ((*ENCODERS, "--learning_rate", "0", "--learning_rate_te2", "1e-4"), [CLIP_G]),
    "with T5 alone": (
        (
            *ALL_ENCODERS,
            *["--learning_rate_te1", "0", "--learning_rate_te2", "0", "--learning_rate_te3", "1e-4"],
        ),
        [DENOISER, T5XXL],
    ),
}
GROUPS = {DENOISER: "unet", CLIP_L: "text_encoder1", CLIP_G: "text_encoder2", T5XXL: "text_encoder3"}


@pytest.mark.parametrize("what", others_slow(RATES, ["with T5 alone"]))
def test_just_the_parts_that_are_trained_move(what: str, runs: Runs, model: tiny.TinySd3) -> None:
    options, parts = RATES[what]
    assert moved(load_file(model.path), runs("rates", *options)) == parts
    (line, *_) = figures(runs.outs / "rates" / "model.metrics.jsonl")
    rates = [name for name in line if name.startswith("lr/")]
    assert rates == ([f"lr/{GROUPS[part]}" for part in parts] if len(parts) > 1 else rates)


def test_trained_text_encoders_lie_beside_the_model_and_go_with_it(
    apart_runs: Runs, apart: tiny.TinySd3
) -> None:
    options = ("--save_every_n_steps", "1", "--save_last_n_steps", "1", "--max_train_steps", "4")
    after = apart_runs("beside", *ALL_ENCODERS, *options, "--save_precision", "bf16")
    out = apart_runs.outs / "beside"
    assert {name.split(".")[0] for name in after} == {"model", "first_stage_model"}
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    for part in TEXT:
        before, own = load_file(apart.encoders[part]), load_file(out / f"model_{part}.safetensors")
        assert own.keys() - before.keys() <= {"text_projection.weight"}
        assert {tensor.dtype for tensor in own.values()} == {torch.float32}
        assert all(not torch.equal(own[name], before[name]) for name in before if "layers.0" in name)
        with safe_open(out / f"model_{part}.safetensors", "pt") as file:
            assert not file.metadata()
    # Each file that makes room takes those beside it along.
    names = {path.name for path in out.glob("*.safetensors")}
    steps = {name.split("_")[0].removesuffix(".safetensors") for name in names if "step" in name}
    assert names == {
        f"{stem}{end}.safetensors" for stem in {"model", *steps} for end in ("", *(f"_{p}" for p in TEXT))
    }
    assert len(steps) < 4


@pytest.mark.parametrize("is_trained", others_slow([True, False], [True]))
def test_text_encoders_can_be_saved_within_the_model(
    is_trained: bool, apart_runs: Runs, apart: tiny.TinySd3
) -> None:
    options = ALL_ENCODERS if is_trained else CACHED
    after = apart_runs("within", *options, "--save_clip", "--save_t5xxl")
    assert [path.name for path in (apart_runs.outs / "within").glob("*.safetensors")] == ["model.safetensors"]
    for part, prefix in TEXT.items():
        assert f"text_encoders.{part}.logit_scale" in after
        assert any(name.startswith(prefix) for name in after)
    path = apart_runs.outs / "within" / "model.safetensors"
    family = Sd3Family({DENOISER: path}, apart.tokenizers)
    family.check((DENOISER, *family.text_outputs, "vae"))
    assert [*family.text_outputs] == [*TEXT]


def test_blocks_at_the_end_stay_as_they_are(runs: Runs, model: tiny.TinySd3) -> None:
    before, after = load_file(model.path), runs("still", *CACHED, "--num_last_block_to_freeze", "2")
    blocks = {
        int(name.removeprefix(BLOCKS).split(".")[0])
        for name in before
        if name.startswith(BLOCKS) and not torch.equal(before[name], after[name])
    }
    assert blocks == {0, 1}


ALL_ON = (
    *("--train_text_encoder", "--use_t5xxl_cache_only", "--cache_latents", "--clip_g_dropout_rate", "0.5"),
    *("--t5_dropout_rate", "0.5", "--pos_emb_random_crop_rate", "0.5", "--enable_scaled_pos_embed"),
    *("--apply_lg_attn_mask", "--apply_t5_attn_mask", "--training_shift", "2", *ADAFACTOR),
    *("--mixed_precision", "bf16", "--full_bf16", "--weighting_scheme", "cosmap"),
    *(
        "--fused_backward_pass",
        "--blocks_to_swap",
        "1",
        "--gradient_checkpointing",
        "--learning_rate_te1",
        "1e-4",
    ),
)


def test_a_run_with_everything_on_resumes_bit_for_bit_and_previews_change_nothing(
    runs: Runs, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1 --d 1\n", encoding="utf-8")
    shown = ("--sample_prompts", str(prompts), "--sample_every_n_steps", "1")
    whole = runs("whole", *ALL_ON)
    saved = ("--save_every_n_steps", "1", "--save_state")
    assert differing(whole, runs("shown", *ALL_ON, *shown, *saved)) == []
    assert len(list((runs.outs / "shown" / "sample").glob("*.png"))) == 2
    state = runs.outs / "shown" / "model-step00000001-state"
    assert differing(whole, runs("resumed", *ALL_ON, "--resume", str(state))) == []


CHANGES = {
    "scaled positions": ("--enable_scaled_pos_embed",),
    "random positions": ("--pos_emb_random_crop_rate", "1"),
    "masks of captions": ("--apply_lg_attn_mask", "--apply_t5_attn_mask"),
    "no CLIP-L": ("--clip_l_dropout_rate", "1"),
    "shift": ("--training_shift", "3"),
    "even levels": ("--weighting_scheme", "uniform"),
    "huber": ("--loss_type", "huber", "--huber_c", "0.2", "--huber_schedule", "constant"),
    "the older levels": ("--sd3_schedule", "2024"),
}


@pytest.mark.parametrize("what", others_slow(CHANGES, ["scaled positions", "masks of captions"]))
def test_options_change_what_is_learned(what: str, runs: Runs) -> None:
    live = ("--cache_latents", "--max_train_steps", "1")
    assert differing(runs.plain(*live), runs("changed", *live, *CHANGES[what]))


FORMS = {
    "weight by weight": ("--fused_backward_pass",),
    "block by block": ("--blockwise_fused_optimizers",),
    "in groups": ("--fused_optimizer_groups", "3"),
    "swapped": ("--fused_backward_pass", "--blocks_to_swap", "1"),
    "checkpointed": ("--gradient_checkpointing",),
    "T5 alone cached": ("--use_t5xxl_cache_only",),
    "T5 on a device of its own": ("--t5xxl_device", "cpu", "--t5xxl_dtype", "fp32"),
}


@pytest.mark.parametrize("what", others_slow(FORMS, ["block by block"]))
def test_the_same_is_learned_in_every_way(what: str, runs: Runs) -> None:
    options = (*CACHED, *ADAFACTOR)
    assert differing(runs.plain(*options), runs("form", *options, *FORMS[what])) == []


WEIGHED = {"masked": ("--alpha_mask",), "weights of regularisation images": ("--prior_loss_weight", "0.25")}


@pytest.mark.parametrize("what", others_slow(WEIGHED, ["masked"]))
def test_masks_and_weights_of_images_act(what: str, runs: Runs, images: Path, tmp_path: Path) -> None:
    for path in sorted((images / "1_cat").glob("*.png")):
        picture = Image.open(path).convert("RGBA")
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
        (tmp_path / "masked" / "1_sks").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "masked" / "1_sks" / path.name)
    tiny.pictures(tmp_path / "others" / "1_cat", 1, (64, 64), seed=9)
    data = ("--train_data_dir", str(tmp_path / "masked"), "--reg_data_dir", str(tmp_path / "others"))
    data = (*data, "--train_batch_size", "4", "--max_train_steps", "1")
    without, changed = (loss_of(runs, *data, *options) for options in ((), WEIGHED[what]))
    assert abs(changed - without) > 1e-3 * without


def loss_of(runs: Runs, *options: str) -> float:
    runs("loss", *options)
    (line,) = figures(runs.outs / "loss" / "model.metrics.jsonl")
    return line["loss"]


@pytest.mark.slow
def test_two_processes_train_what_one_does(runs: Runs) -> None:
    options = (*ENCODERS, *SGD)
    alone = runs("alone", *options, "--gradient_accumulation_steps", "2")
    root = Path(__file__).parents[2]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(root / "sd-scripts/sd3_train.py"), *runs.arguments("both", *options)]
    subprocess.run(command, check=True, capture_output=True)
    both = load_file(runs.outs / "both" / "model.safetensors")
    assert max((both[n].double() - alone[n].double()).abs().max().item() for n in alone) < 1e-6


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--train_t5xxl",), "--train_t5xxl needs --train_text_encoder: T5 is trained along with the others"),
        (
            (*ALL_ENCODERS, "--use_t5xxl_cache_only"),
            "--train_t5xxl excludes --use_t5xxl_cache_only: what changes cannot be cached",
        ),
        ((*ALL_ENCODERS, "--cache_text_encoder_outputs"), "every text encoder is trained"),
        (("--strict", "--learning_rate_te3", "1e-4"), "--learning_rate_te3 has no effect without"),
        (("--t5xxl_device", "cuda:7"), "--t5xxl_device is cuda:7, which this machine has not"),
        (("--t5xxl_dtype", "fp16"), "--t5xxl_dtype, or --mixed_precision without it, is fp16"),
    ],
)
def test_what_cannot_be_is_one_line(
    options: tuple[str, ...], complaint: str, runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    assert complaint in runs.refusal(capfd, *options)
