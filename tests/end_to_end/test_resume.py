"""Runs that go on from a state: they end with the weights of a run that never stopped, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.cli.main import script
from tests import tiny
from tests.runs import figures, others_slow, refusal

OPTIMIZERS = {
    "AdamW": [],
    # Tensors as small as these would otherwise get states of 32 bits.
    "AdamW8bit": ["--optimizer_type", "AdamW8bit", "--optimizer_args", "min_8bit_size=16"],
    "Adafactor": [
        *("--optimizer_type", "Adafactor", "--max_grad_norm", "0", "--lr_scheduler", "constant_with_warmup"),
        *("--optimizer_args", "relative_step=False", "scale_parameter=False", "warmup_init=False"),
    ],
    "Adafactor, own rates": ["--optimizer_type", "Adafactor", "--max_grad_norm", "0"],
    "Prodigy": ["--optimizer_type", "Prodigy", "--learning_rate", "1"],
    "schedule-free": ["--optimizer_type", "AdamWScheduleFree"],
}

CACHED = {
    "cached": [
        "--cache_latents_to_disk",
        "--cache_text_encoder_outputs_to_disk",
        "--network_train_unet_only",
    ],
    "live, with CLIP-L": [],
}

OFTEN = list(zip(OPTIMIZERS, [*CACHED] * 3, strict=True))
"""What normal runs try: every optimizer, and both kinds of caching three times."""

WORKERS = {count: ["--max_data_loader_n_workers", str(count)] for count in (0, 2)}

STATES = ["--save_every_n_steps", "3", "--save_state"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"), hidden=32, heads=1, depth=1, depth_single=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "1_sks cat"
    tiny.pictures(folder, 4)
    return folder


LORA = ["--network_module", "networks.lora_flux", "--network_dim", "2"]


def arguments(model: tiny.TinyFlux, images: Path, out: Path, *options: str) -> list[str]:
    """Return the arguments of a run of six steps, four to an epoch, that trains a LoRA."""
    return without_network(model, images, out, *LORA, *options)


def without_network(model: tiny.TinyFlux | tiny.TinySd3, images: Path, out: Path, *options: str) -> list[str]:
    """Return the same arguments, but for those of a LoRA."""
    text = "--output_name lora --resolution 64 --seed 5 "
    text += "--caption_extension .txt --max_train_steps 6 --learning_rate 1e-2 --lr_scheduler cosine"
    places = ["--train_data_dir", str(images.parent), "--output_dir", str(out)]
    return [*model.arguments, *places, *text.split(), *WORKERS[0], *options]


def run(*options: str) -> None:
    assert script("flux_train_network", options) == 0


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = (load_file(folder / "lora.safetensors") for folder in (first, second))
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []
    assert any(one[name].any() for name in one if "lora_down" not in name)


def metrics(folder: Path) -> list[dict[str, float]]:
    return figures(folder / "lora.metrics.jsonl")


def check(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, before: Sequence[str], after: Sequence[str]
) -> None:
    """Train six steps in one run and in two; both must end with the same weights."""
    run(*arguments(model, images, tmp_path / "whole", *STATES, *before))
    state = str(tmp_path / "whole" / "lora-step00000003-state")
    run(*arguments(model, images, tmp_path / "resumed", *after, "--resume", state))
    assert_same_weights(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize(("optimizer", "cached"), others_slow(product(OPTIMIZERS, CACHED), OFTEN))
def test_a_resumed_run_equals_an_uninterrupted_one(
    optimizer: str, cached: str, model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    options = [*OPTIMIZERS[optimizer], *CACHED[cached]]
    workers = WORKERS[2] if cached == "cached" and optimizer in ("AdamW", "schedule-free") else WORKERS[0]
    check(model, images, tmp_path, options, [*options, *workers])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "cached", "before", "after"), list(product(OPTIMIZERS, CACHED, WORKERS, WORKERS))
)
def test_the_number_of_workers_on_either_side_of_a_resume_changes_nothing(
    optimizer: str,
    cached: str,
    before: int,
    after: int,
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
) -> None:
    options = [*OPTIMIZERS[optimizer], *CACHED[cached]]
    check(model, images, tmp_path, [*options, *WORKERS[before]], [*options, *WORKERS[after]])


def test_whatever_is_random_goes_on_where_it_was(model: tiny.TinyFlux, images: Path, tmp_path: Path) -> None:
    text = "--gradient_accumulation_steps 3 --flip_aug --shuffle_caption --caption_dropout_rate 0.3 "
    text += "--network_dropout 0.2 --network_args rank_dropout=0.2 module_dropout=0.1 --loss_type l1"
    # Two steps an epoch, the second of one batch: the state lies within the second epoch.
    check(model, images, tmp_path, text.split(), [*text.split(), *WORKERS[2]])


KINDS = {
    "noise": "networks.lora_flux ggpo_sigma=0.1 ggpo_beta=10 network_reg_lrs=single=2e-2",
    "LoRA-FA": "networks.lora_fa",
    "OFT": "networks.oft_flux enable_all_linear=True",
    "LoHa": "networks.loha",
    "LoKr": "networks.lokr factor=4",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_goes_on_where_it_was(
    kind: str, model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    module, *network_args = KINDS[kind].split()
    network = ["--network_module", module, *(["--network_args", *network_args] if network_args else [])]
    check(model, images, tmp_path, network, network)


def test_a_state_from_the_end_carries_a_longer_run_on(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    constant = ["--lr_scheduler", "constant"]
    run(*arguments(model, images, tmp_path / "whole", *constant))
    short = [*constant, "--max_train_steps", "5", "--save_state_on_train_end", "--save_every_n_steps", "2"]
    out = tmp_path / "short"
    run(*arguments(model, images, out, *short))
    assert [path.name for path in out.glob("*-state")] == ["lora-state"]
    position = json.loads((out / "lora-state" / "train_state.json").read_text())
    assert position == {"current_epoch": 2, "current_step": 6}
    assert not list(out.rglob("*.bin")) + list(out.rglob("*.pkl")) + list(out.rglob("*.pt"))

    capfd.readouterr()
    again = arguments(model, images, out, *short, "--resume", str(out / "lora-state"))
    assert script("flux_train_network", again) == 2
    assert "5 steps are done and the run has 5; raise --max_train_steps" in refusal(capfd)
    run(*arguments(model, images, out, *constant, "--resume", str(out / "lora-state")))
    assert_same_weights(tmp_path / "whole", out)
    assert [line["step"] for line in metrics(out)] == [1, 2, 3, 4, 5, 6]
    assert metrics(out) == metrics(tmp_path / "whole")


def test_figures_after_the_state_are_replaced_and_a_torn_last_line_is_dropped(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(*arguments(model, images, out, *STATES))
    whole = metrics(out)
    with (out / "lora.metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    run(*arguments(model, images, out, "--resume", str(out / "lora-step00000003-state")))
    assert metrics(out) == whole


def test_other_options_are_named_and_places_are_not(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(*arguments(model, images, tmp_path / "whole", *STATES))
    state = str(tmp_path / "whole" / "lora-step00000003-state")
    capfd.readouterr()
    tiny.pictures(images, 5)
    other = ["--resume", state, "--learning_rate", "2e-2", "--flip_aug", "--initial_step", "1"]
    run(*arguments(model, images, tmp_path / "resumed", *other))
    shown = capfd.readouterr().err
    differences = [line.partition("other options: ")[2] for line in shown.splitlines()]
    assert [line for line in differences if line] == [
        "--flip_aug was not given and is True",
        "--initial_step was not given and is 1",
        "--learning_rate was 0.01 and is 0.02; the state's holds",
        "--save_every_n_steps was 3 and is not given",
        "--save_state was True and is not given",
    ]
    said = [line.partition("other data: ")[2] for line in shown.splitlines() if "other data: " in line]
    assert said[0] == "images were added, changed or removed"
    assert len(said) == 3  # their captions and batches are others, too
    assert "--initial_step and --initial_epoch are ignored: the state knows its position" in shown


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("record cut off", "state.json is damaged"),
        ("record of something else", "lacks epoch, finished, kind, optimizer, options, seed"),
        ("no record", "holds no state.json"),
        ("tensors cut off", "is truncated"),
        ("no tensors", "state.safetensors"),
        ("a tensor of another shape", r"holds (3, 7) for optimizer/state/0/exp_avg, which is ("),
        ("other version", "has version 0; this program reads version 2"),
        ("sd-scripts'", "was saved by sd-scripts as pickles"),
        ("nothing", "is not a folder"),
    ],
)
def test_a_state_that_is_none_is_refused_in_one_line_before_any_weight_is_loaded(
    damage: str,
    message: str,
    model: tiny.TinyFlux,
    images: Path,
    saved_state: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    state = tmp_path / "x-state"
    shutil.copytree(saved_state, state)
    record, tensors = state / "state.json", state / "state.safetensors"
    if damage == "record cut off":
        record.write_text(record.read_text()[:-20])
    elif damage == "record of something else":
        record.write_text('{"version": 1}')
    elif damage == "other version":
        record.write_text(json.dumps(json.loads(record.read_text()) | {"version": 0}))
    elif damage == "tensors cut off":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "a tensor of another shape":
        save_file({**load_file(tensors), "optimizer/state/0/exp_avg": torch.zeros(3, 7)}, tensors)
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "nothing":
        shutil.rmtree(state)
    else:
        record.unlink()
    if damage == "sd-scripts'":
        (state / "optimizer.bin").write_bytes(b"")
    capfd.readouterr()
    assert script("flux_train_network", arguments(model, images, tmp_path, "--resume", str(state))) == 2
    assert message in refusal(capfd)


@pytest.mark.parametrize("left", [".x-state.previous", ".x-state.part"])
def test_a_state_whose_run_was_killed_between_two_renames_is_found(
    left: str, model: tiny.TinyFlux, images: Path, saved_state: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved_state, tmp_path / left)
    (tmp_path / ".x-state.previous").mkdir(exist_ok=True)
    run(*arguments(model, images, tmp_path, "--resume", str(tmp_path / "x-state")))
    assert [line["step"] for line in metrics(tmp_path)] == [2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def saved_state(model: tiny.TinyFlux, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a state of AdamW after one step."""
    folder = tmp_path_factory.mktemp("saved")
    tiny.pictures(folder / "data" / "1_x", 4)
    one_step = ["--max_train_steps", "1", "--save_state"]
    run(*arguments(model, folder / "data" / "1_x", folder / "out", *one_step))
    return folder / "out" / "lora-state"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (OPTIMIZERS["Prodigy"], "was saved with torch.optim.adamw.AdamW and the run has prodigyopt"),
        (["--network_dim", "3"], "resume with the options of the run that saved it"),
        (["--text_encoder_lr", "0"], "groups of weights"),
    ],
)
def test_a_state_of_another_kind_of_run_is_refused(
    options: list[str],
    message: str,
    model: tiny.TinyFlux,
    images: Path,
    saved_state: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    resumed = arguments(model, images, tmp_path, *options, "--resume", str(saved_state))
    assert script("flux_train_network", resumed) == 2
    said = capfd.readouterr().err
    assert message in said
    assert (" loading " in said) == (message == "groups of weights"), "found before a model is loaded"


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ("--initial_step 3 --skip_until_initial_step", [(4, 1), (5, 2), (6, 2)]),
        ("--initial_step 5", [(5, 2), (6, 2)]),
        ("--initial_epoch 2", [(5, 2), (6, 2)]),
        ("--initial_epoch 2 --skip_until_initial_step", [(5, 2), (6, 2)]),
        ("--initial_epoch 2 --initial_step 5 --skip_until_initial_step", [(6, 2)]),
    ],
)
def test_a_run_without_a_state_starts_where_it_is_told_to(
    options: str, steps: list[tuple[int, int]], model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    run(*arguments(model, images, tmp_path, *options.split()))
    assert [(line["step"], line["epoch"]) for line in metrics(tmp_path)] == steps
