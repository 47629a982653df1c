"""Runs that are killed: what is left lets them go on, and they end as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest

from tests import processes, tiny
from tests.end_to_end.test_resume import (
    CACHED,
    OPTIMIZERS,
    WORKERS,
    arguments,
    assert_same_weights,
    metrics,
    without_network,
)
from tests.end_to_end.test_resume import model as model
from tests.runs import num_steps, others_slow

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on Windows")

SAVING = ["--save_every_n_steps", "1", "--save_state"]


class Runs:
    """One training that is started again and again in the same folder until it ends by itself."""

    script, arguments = "flux_train_network", staticmethod(arguments)

    def __init__(self, model: tiny.TinyFlux | tiny.TinySd3, folder: Path, options: list[str]) -> None:
        self.folder, self.out, self.log = folder, folder / "out", folder / "log.txt"
        self._model, self._options = model, [*SAVING, *options]
        self._images = folder / "data" / "1_sks cat"
        self._leftovers: set[Path] = set()
        folder.mkdir(parents=True)
        tiny.pictures(self._images, 4)

    def start(self, meddle: Callable[..., None] | None = None, *extra: object) -> BaseProcess:
        """Start from the newest state, or from the beginning where there is none."""
        states = sorted(self.out.glob("lora-step*-state"))
        resume = ["--resume", str(states[-1])] if states else []
        asked = self.arguments(self._model, self._images, self.out, *self._options, *resume)
        return processes.start(asked, self.log, meddle, *extra, name=self.script)

    @property
    def is_done(self) -> bool:
        """Whether the run came to its end."""
        return (self.out / "lora.safetensors").exists()

    @property
    def num_recorded(self) -> int:
        """The steps in the metrics file."""
        return num_steps(self.out / "lora.metrics.jsonl")

    def finish(self) -> None:
        """Run to the end, if that was not reached yet."""
        if self.is_done:
            return
        assert processes.finish(self.start()) == 0, self.log.read_text()[-3000:]

    def phase(self) -> str:
        """Return what a killed run seems to have been doing, by the unfinished files it added."""
        found = {path for folder in (self._images, self.out) for path in folder.glob(".*.part*")}
        new, self._leftovers = found - self._leftovers, self._leftovers | found
        if any(path.parent == self._images for path in new):
            return "caching"
        if new:
            return "saving"
        return "stepping" if self.num_recorded else "starting"


class WholeModelRuns(Runs):
    """The same, of a training of all weights."""

    script, arguments = "flux_train", staticmethod(without_network)


class StableDiffusion3Runs(Runs):
    """The same, of a training of all of Stable Diffusion 3."""

    script, arguments = "sd3_train", staticmethod(without_network)


def _kill(process: BaseProcess) -> bool:
    """Kill a run; return whether it was still alive. Those that load for it end with it."""
    try:
        loading = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        loading = []
    process.kill()
    was_alive = processes.finish(process) == -signal.SIGKILL
    _, left = psutil.wait_procs(loading, timeout=20)
    assert left == []
    return was_alive


def _kill_at_random(runs: Runs, rng: random.Random, times: int) -> Counter[str]:
    """Kill a run a few steps after it started, anywhere between two of them."""
    phases: Counter[str] = Counter()
    for _ in range(times):
        if runs.is_done:
            break
        process = runs.start()
        wanted = runs.num_recorded + rng.randint(1, 2)
        while process.is_alive() and runs.num_recorded < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        if _kill(process):
            phases[runs.phase()] += 1
    return phases


def _kill_while_caching(runs: Runs, rng: random.Random) -> bool:
    """Kill a run that has cached nothing yet just before a cache file gets its name; which one is random."""
    return processes.finish(runs.start(processes.die_at_rename, rng.randint(1, 8))) == -signal.SIGKILL


def _kill_while_saving(runs: Runs, rng: random.Random) -> bool:
    """Kill a run while it writes a save; which file is random."""
    process, seen = runs.start(), set()
    wanted = rng.randint(1, 4)
    while process.is_alive():
        seen |= {path.name for path in runs.out.glob(".*.part")}
        if len(seen) >= wanted:
            return _kill(process)
    return False


def _check(
    model: tiny.TinyFlux | tiny.TinySd3,
    tmp_path: Path,
    options: list[str],
    seed: int,
    times: int,
    kind: type[Runs] = Runs,
) -> Counter[str]:
    whole, killed = (kind(model, tmp_path / name, options) for name in ("whole", "killed"))
    whole.finish()
    rng = random.Random(seed)
    phases = Counter[str]()
    if "--cache_latents_to_disk" in options and _kill_while_caching(killed, rng):
        phases[killed.phase()] += 1
    phases += _kill_at_random(killed, rng, times)
    if not killed.is_done and _kill_while_saving(killed, rng):
        phases[killed.phase()] += 1
    killed.finish()
    assert_same_weights(whole.out, killed.out)
    assert metrics(killed.out) == metrics(whole.out)
    assert phases, "no kill came in time"
    return phases


@pytest.mark.parametrize(
    ("optimizer", "cached", "workers"),
    [("AdamW8bit", "cached", 2), ("schedule-free", "live, with CLIP-L", 0)],
)
def test_a_killed_run_goes_on_to_the_same_weights(
    optimizer: str, cached: str, workers: int, model: tiny.TinyFlux, tmp_path: Path
) -> None:
    options = [*OPTIMIZERS[optimizer], *CACHED[cached], *WORKERS[workers]]
    _check(model, tmp_path, options, seed=1, times=1)


@pytest.mark.parametrize("optimizer", others_slow(["Adafactor", "AdamW8bit"], ["Adafactor"]))
def test_a_killed_fine_tuning_with_swap_and_fused_backward_goes_on_to_the_same_weights(
    optimizer: str, tmp_path: Path
) -> None:
    model = tiny.flux(tmp_path / "model", hidden=32, heads=1, depth=3, depth_single=4)
    options = [*OPTIMIZERS[optimizer], *CACHED["cached"], "--fused_backward_pass", "--blocks_to_swap", "1"]
    options.remove("--network_train_unet_only")
    _check(model, tmp_path, [*options, "--max_grad_norm", "0"], seed=2, times=2, kind=WholeModelRuns)


@pytest.mark.slow
def test_a_killed_stable_diffusion_3_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    model = tiny.sd3(tmp_path / "model", hidden=64, depth=4)
    options = [*OPTIMIZERS["Adafactor"], "--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk"]
    options += [
        "--train_text_encoder",
        "--use_t5xxl_cache_only",
        "--fused_backward_pass",
        "--blocks_to_swap",
        "1",
    ]
    options += ["--t5_dropout_rate", "0.5", "--max_grad_norm", "0"]
    _check(model, tmp_path, options, seed=3, times=2, kind=StableDiffusion3Runs)


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "cached", "workers"), list(product(OPTIMIZERS, CACHED, WORKERS)))
def test_killed_at_any_moment_with_any_optimizer(
    optimizer: str,
    cached: str,
    workers: int,
    model: tiny.TinyFlux,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    options = [*OPTIMIZERS[optimizer], *CACHED[cached], *WORKERS[workers]]
    phases = _check(model, tmp_path, options, seed=len(options), times=3)
    record_property("kills", dict(phases))
    print("kills:", dict(phases))


KINDS = {
    "lycoris.kohya": [
        "lora use_scalar=True",
        "full",
        "tlora",
        "locon",
        "loha",
        "lokr factor=4",
        "diag-oft",
        "boft",
    ],
    "networks.loha": [""],
    "networks.lokr": [""],
    "networks.oft_flux": [""],
}
"""Networks of LyCORIS by the algorithm and its arguments, and our own of the same kinds."""

TRAINED = [("AdamW", "cached", 0), ("schedule-free", "live, with CLIP-L", 2)]


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "cached", "workers"), TRAINED)
@pytest.mark.parametrize(
    ("module", "algorithm"), [(name, one) for name, each in KINDS.items() for one in each]
)
def test_killed_at_any_moment_with_any_kind_of_lycoris(
    module: str,
    algorithm: str,
    optimizer: str,
    cached: str,
    workers: int,
    model: tiny.TinyFlux,
    tmp_path: Path,
) -> None:
    network = ["--network_module", module, "--network_dim", "16" if algorithm == "boft" else "2"]
    if algorithm:
        network += ["--network_args", *f"algo={algorithm}".split()]
    options = [*network, "--network_alpha", "1", *OPTIMIZERS[optimizer], *CACHED[cached], *WORKERS[workers]]
    phases = _check(model, tmp_path, options, seed=3, times=3)
    print("kills:", dict(phases))


@pytest.mark.parametrize("meddle", [processes.die_at_rename, processes.die_at_sync])
def test_a_run_killed_in_every_rename_or_flush_of_a_save_goes_on(
    meddle: Callable[..., None], model: tiny.TinyFlux, tmp_path: Path
) -> None:
    options = [*CACHED["cached"], "--max_train_steps", "2"]
    whole, killed = (Runs(model, tmp_path / name, options) for name in ("whole", "killed"))
    whole.finish()
    shutil.copytree(whole._images, killed._images, dirs_exist_ok=True)  # caches are another test's
    num_deaths = 0
    for number in (1, 3, 5, 2):
        if killed.is_done:
            break
        num_deaths += processes.finish(killed.start(meddle, number)) == -signal.SIGKILL
    killed.finish()
    assert num_deaths >= 2
    assert_same_weights(whole.out, killed.out)
    assert metrics(killed.out) == metrics(whole.out)
