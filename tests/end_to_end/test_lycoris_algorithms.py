"""Every algorithm of LyCORIS with every family: it trains, resumes bit for bit, goes on from its own file."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sfumato.cli.main import script
from tests import tiny
from tests.adapters.lycoris_algorithms import ALGORITHMS, RANKS
from tests.runs import Runs, differing, error_of

FAMILIES = {"sd": "train_network", "sdxl": "sdxl_train_network", "flux": "flux_train_network"}

QUICK = [("flux", "full")]

SHORT = """
--network_module lycoris.kohya --network_dim 2 --network_alpha 1 --max_data_loader_n_workers 0 --resolution 64
--caption_extension .txt --seed 1 --learning_rate 1e-2 --max_train_steps 4 --cache_latents
"""
SAVING = ["--save_every_n_steps", "2", "--save_state"]

NOT_LOADED = {
    "dylora": r"did not take \w+.lora_(up|down).weight from",
    "ia3, by its file": "make_module_from_state_dict",
    "locon, decomposed by inputs, by its file": "doesn't match the broadcast shape",
}
"""What the module itself cannot load, and what is said of it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lycoris")
    tiny.pictures(folder / "data" / "1_cat", 4)
    return folder


def runs_of(family: str, folder: Path, outs: Path) -> Runs:
    """Return runs on a model of the family that all tests share."""
    path = folder / family
    if family == "flux":
        model: tiny.TinyFlux | tiny.TinyCheckpoint = tiny.flux(
            path, hidden=32, heads=1, depth=1, depth_single=1
        )
    else:
        model = tiny.sdxl(path) if family == "sdxl" else tiny.sd(path)
    places = [*model.arguments, "--train_data_dir", str(folder / "data")]
    return Runs(FAMILIES[family], places, SHORT.split(), outs)


def args_of(family: str, algorithm: str) -> list[str]:
    """Return what to say for an algorithm; T-LoRA cannot work on large kernels."""
    preset = ["preset=attn-mlp"] if algorithm == "tlora" and family != "flux" else []
    return [
        "--network_args",
        *ALGORITHMS[algorithm].split(),
        *preset,
        "--network_dim",
        str(RANKS.get(algorithm, 2)),
    ]


def assert_every_layer_learns(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """All layers have moved, but for those of text encoders that nobody listens to."""
    moved: dict[str, bool] = defaultdict(bool)
    for name, tensor in after.items():
        moved[name.partition(".")[0]] |= not torch.equal(tensor, before[name])
    still = [name for name, has_moved in moved.items() if not has_moved]
    assert [name for name in still if not re.match(r"lora_te\d?_.*layers_[12]_", name)] == []
    assert len(still) < len(moved) / 3


def assert_about_the_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """All but alphas, which say nothing where a change has full rank."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if name.endswith(".alpha"):
            continue
        error = (second[name].double() - tensor.double()).abs().max()
        assert error <= 1e-3 * tensor.abs().max() + 1e-7, name


def check(family: str, algorithm: str, folder: Path, outs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Train in one run and in two, then go on from the file at a rate at which nothing moves."""
    runs, args = runs_of(family, folder, outs), args_of(family, algorithm)
    whole = runs("whole", *args, *SAVING)
    assert_every_layer_learns(load_file(outs / "whole" / "model-step00000002.safetensors"), whole)
    state = str(outs / "whole" / "model-step00000002-state")
    assert differing(whole, runs("resumed", *args, "--resume", state)) == []
    going_on = ["--network_weights", str(outs / "whole" / "model.safetensors"), "--learning_rate", "1e-12"]
    going_on += ["--max_train_steps", "1"]
    for name, how in ((algorithm, args), (f"{algorithm}, by its file", ["--dim_from_weights"])):
        if name in NOT_LOADED:
            capfd.readouterr()
            assert script(runs.name, runs.arguments("refused", *how, *going_on)) == 2
            assert re.search(NOT_LOADED[name], error_of(capfd.readouterr().err))
        else:
            assert_about_the_same(whole, runs(f"on {len(how)}", *how, *going_on))


@pytest.mark.parametrize(("family", "algorithm"), QUICK)
def test_an_algorithm_trains_resumes_and_goes_on(
    family: str, algorithm: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(family, algorithm, folder, tmp_path, capfd)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "algorithm"), list(product(FAMILIES, ALGORITHMS)))
def test_every_algorithm_trains_resumes_and_goes_on_with_every_family(
    family: str, algorithm: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check(family, algorithm, folder, tmp_path, capfd)
