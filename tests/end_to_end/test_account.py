"""The account of a run against what the run itself takes, on models large enough to be measured."""

from __future__ import annotations

import gc
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from safetensors.torch import load_file

from sfumato.cli.main import main
from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.config.rules.evaluation import imply
from sfumato.config.rules.tables import rules_of
from sfumato.config.run.distributed import DistributedConfig
from sfumato.errors import UserError
from sfumato.nn.dry_run import Tally, without_numbers
from sfumato.training.core import distributed
from sfumato.training.core.memory_account import Account, MemoryItem, Phase
from sfumato.training.run.account import account, foresee
from sfumato.training.run.execution import execute
from sfumato.training.run.loop import Loop
from sfumato.training.run.session import TrainingSession
from sfumato.training.run.setup import prepare
from tests import tiny
from tests.runs import others_slow

SHORT = """
--resolution 128 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-3 --cache_latents --cache_text_encoder_outputs --t5xxl_max_token_length 64
--output_name model
"""
LORA = (
    "flux_train_network",
    "--network_module networks.lora_flux --network_dim 4 --network_train_unet_only --train_batch_size 2",
)
FULL = ("flux_train", "--train_batch_size 1 --max_grad_norm 0")
BF16 = "--mixed_precision bf16 --save_precision bf16"
ADAFACTOR = (
    "--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False "
    "--lr_scheduler constant"
)
OTHERS = (
    "flux_train_network",
    "--network_module lycoris.kohya --network_dim 4 --network_alpha 1 --network_train_unet_only "
    "--train_batch_size 2",
)
GUESTS = ("algo=lora dora_wd=True", "algo=loha", "algo=lokr", "algo=tlora", "algo=dylora block_size=4")
SWAPPED = "adapter, 8 bits, checkpointed, swapped"
SETTINGS = {
    "adapter": (*LORA, ""),
    SWAPPED: (
        *LORA,
        f"{BF16} --fp8_base --gradient_checkpointing --blocks_to_swap 1 --gradient_accumulation_steps 2",
    ),
    "adapter, checkpoints in RAM": (*LORA, f"{BF16} --cpu_offload_checkpointing"),
    "network of others that reads weights": (*OTHERS, "--network_args algo=full"),
    "whole model": (*FULL, ""),
    "whole model in bfloat16": (*FULL, f"{BF16} --full_bf16"),
    "whole model, fused": (
        *FULL,
        f"{BF16} --full_bf16 {ADAFACTOR} --fused_backward_pass --gradient_checkpointing --blocks_to_swap 1",
    ),
}
OFTEN = [name for name in SETTINGS if name not in ("whole model", "whole model in bfloat16")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"), hidden=256, heads=4, depth=3, depth_single=4)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_sks cat", 4, (128, 128))
    return folder


def session_for(name: str, model: tiny.TinyFlux, images: Path, out: Path) -> TrainingSession:
    script, *own = SETTINGS[name]
    places = ["--train_data_dir", str(images), "--output_dir", str(out)]
    argv = [*model.arguments, *places, *SHORT.split(), *" ".join(own).split()]
    run = parse(script_named(script), argv, prog=script).run
    run, _ = imply(run, rules_of(run))
    return prepare(run, distributed.start(run[DistributedConfig]))


@pytest.mark.slow
@pytest.mark.parametrize("network_args", GUESTS)
def test_networks_of_others_are_counted(
    network_args: str, model: tiny.TinyFlux, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETTINGS, network_args, (*OTHERS, f"--network_args {network_args}"))
    test_account_is_what_the_tensors_of_a_step_take(network_args, model, images, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", others_slow(SETTINGS, OFTEN))
def test_account_is_what_the_tensors_of_a_step_take(
    name: str, model: tiny.TinyFlux, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_for(name, model, images, tmp_path)
    training = account(session, "cpu").phases[-1]
    tally = Tally()
    take, peaks = Loop._take, []

    def measured(*given: object) -> list[str]:
        tally.peak = tally.live
        paths = take(*given)  # type: ignore[arg-type]
        peaks.append(tally.peak)
        return paths

    monkeypatch.setattr(Loop, "_take", measured)
    with tally:
        execute(session)
    assert len(peaks) == 2
    assert training.device + training.host == pytest.approx(peaks[-1], rel=0.02)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak")
def test_account_is_within_a_tenth_of_what_the_process_takes(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(setting, "16384")  # what is freed goes back to the system at once
    large = tiny.flux(tmp_path / "large", hidden=512, heads=4, depth=2, depth_single=2)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as child:
        found = child.submit(_measure, model, large, images, tmp_path).result()
    for name, least in (("adapter", 150e6), ("whole model", 450e6)):
        counted, taken = found[name]
        assert counted > least
        assert counted == pytest.approx(taken, rel=0.1)


def _measure(
    model: tiny.TinyFlux, large: tiny.TinyFlux, images: Path, folder: Path
) -> dict[str, tuple[int, int]]:
    """Return what two runs take by their accounts, and by how much the process grows in them."""
    found = {}
    for name in ("adapter", "whole model"):
        execute(session_for(name, model, images, folder / "first"))  # so that everything is imported
        session = session_for(name, large, images, folder / "second")
        counted = account(session, "cpu").phases[-1]
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = _status("VmRSS")
        execute(session)
        found[name] = counted.device, _status("VmHWM") - before
        del session
    return found


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@pytest.mark.parametrize("name", others_slow(["adapter", SWAPPED], ["adapter"]))
def test_counting_changes_nothing_that_is_trained(
    name: str, model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    execute(session_for(name, model, images, tmp_path / "plain"))
    session = session_for(name, model, images, tmp_path / "counted")
    account(session, "cuda")
    execute(session)
    plain, counted = (load_file(tmp_path / run / "model.safetensors") for run in ("plain", "counted"))
    assert plain.keys() == counted.keys()
    assert all(torch.equal(plain[key], counted[key]) for key in plain)


def test_a_count_is_printed_as_a_table_or_as_figures(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--train_data_dir", str(images), "--output_dir", str(tmp_path)]
    options = [*model.arguments, *places, *SHORT.split(), "--network_dim", "4", "--network_train_unet_only"]
    assert main(["plan", "flux", "lora", *options, "--mixed_precision", "bf16", "--json"]) == 0
    training = json.loads(capsys.readouterr().out)["training"]
    # 20,000 numbers or so are biases and norms; the large rest is matrices, at two bytes each.
    assert training["items"]["denoiser in bfloat16"] == {"device": 23136896, "host": 0}
    assert training["device"] == sum(item["device"] for item in training["items"].values())
    assert main(["account", "flux", "lora", *options, "--mixed_precision", "bf16"]) == 0
    table = capsys.readouterr().out
    assert "denoiser in bfloat16" in table
    assert f"{training['device'] / 1e9:.3f} GB" in table.splitlines()[-1]
    assert not list(tmp_path.glob("*.safetensors"))


def test_text_encoders_that_the_processor_runs_count_as_memory_of_the_host(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--train_data_dir", str(images), "--output_dir", str(tmp_path)]
    options = [*tiny.sd3(tmp_path / "model").arguments, *places, *SHORT.split(), "--network_train_unet_only"]
    found = {}
    for name, own in (("device", []), ("host", ["--t5xxl_device", "cpu", "--t5xxl_dtype", "fp32"])):
        assert main(["plan", "sd3", "lora", *options, "--network_dim", "4", *own, "--json"]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    t5 = {name: account["encoding captions"]["items"]["t5xxl in float32"] for name, account in found.items()}
    assert t5["host"] == {"device": 0, "host": t5["device"]["device"]}
    assert t5["device"]["device"] > 1_000_000
    saved = found["device"]["encoding captions"]["device"] - found["host"]["encoding captions"]["device"]
    assert saved >= t5["host"]["host"]
    # The first count in a process holds a few hundred bytes of tables that later ones find ready.
    assert found["device"]["training"]["device"] == pytest.approx(
        found["host"]["training"]["device"], abs=1000
    )


ERRORS = [RuntimeError("a\nb"), MemoryError(), TimeoutError("slow"), UserError("x is y; do z"), KeyError("k")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_advice_that_fails_is_one_warning_and_ends_no_run(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> Account:
        raise error

    processes = SimpleNamespace(device=torch.device("cuda"), is_first=True)
    monkeypatch.setattr("sfumato.training.run.account.account", fail)
    foresee(cast(TrainingSession, SimpleNamespace(processes=processes)))
    (line,) = caplog.messages
    assert line.startswith("how much memory this run takes cannot be foreseen: ")
    assert "\n" not in line


def test_advice_ends_after_its_time(model: tiny.TinyFlux, images: Path, tmp_path: Path) -> None:
    session = session_for("adapter", model, images, tmp_path)
    with pytest.raises(TimeoutError, match="too long"):
        account(session, "cuda", within_s=0)
    assert torch.empty(2).zero_().tolist() == [0, 0]
    assert account(session, "cuda").worst.device > 0


def test_programs_find_phases_by_the_names_they_always_had() -> None:
    counted = Account([Phase(name, []) for name in ("encoding images", "encoding captions", "training")])
    assert [*counted.as_dict()] == ["encoding pictures", "encoding captions", "training"]


def test_a_device_that_is_too_small_is_foreseen() -> None:
    weights, passing = (
        MemoryItem("denoiser in bfloat16", 24_000_000_000),
        MemoryItem("working memory", 2_000_000_000),
    )
    counted = Account([Phase("encoding captions", [passing]), Phase("training", [weights, passing])])
    assert counted.shortage(26_000_000_000) is None
    assert counted.shortage(None) is None
    line = counted.shortage(25_000_000_000)
    assert line is not None
    assert line.startswith(
        "training takes 26.0 GB on the device, 24.0 GB of it for denoiser in bfloat16, and 25"
    )


def test_pinned_memory_is_not_the_devices_and_shared_memory_counts_once() -> None:
    with without_numbers("cuda") as tally:
        first = torch.empty(1000)
        second = first[10:].view(-1, 10)
        pinned = torch.empty(500, pin_memory=True)
        assert (tally.live, tally.host) == (4000, 2000)
        del first
        assert tally.live == 4000
        del second, pinned
        assert (tally.live, tally.peak, tally.host) == (0, 4000, 2000)


def test_autocast_widens_norms_for_a_graphics_card_only() -> None:
    for kind, dtype in (("cuda", torch.float32), ("cpu", torch.bfloat16)):
        with without_numbers(kind), torch.autocast("cpu", torch.bfloat16):
            norm, rows = torch.nn.LayerNorm(8), torch.empty(4, 8, dtype=torch.bfloat16)
            assert norm(rows).dtype is dtype
            assert torch.nn.Linear(8, 8)(norm(rows)).dtype is torch.bfloat16


def test_whole_numbers_that_code_writes_down_are_read_as_they_are() -> None:
    with without_numbers("cuda"):
        assert torch.tensor((3, 5)).prod().item() == 15
        assert torch.empty(2).sum().item() == 1
