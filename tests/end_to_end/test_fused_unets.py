"""Whole UNets and text encoders, at rates of their own, change within the backward pass as after it."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.runs import Runs, differing

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-3 --train_text_encoder --learning_rate_te1 5e-4 --learning_rate_te2 2e-4 --max_grad_norm 0
--save_model_as safetensors --cache_latents
"""
SHARES = ("--fused_optimizer_groups", "5")
FUSED = {
    "weight by weight, swapped": ("--fused_backward_pass", "--blocks_to_swap", "4"),
    "block by block, swapped, checkpointed": (
        *("--blockwise_fused_optimizers", "--blocks_to_swap", "2", "--gradient_checkpointing"),
    ),
    "in shares, two batches a step": (*SHARES, "--gradient_accumulation_steps", "2"),
}
BLOCKS = ("--block_lr", ",".join(["1e-3"] * 10 + ["0"] * 3 + ["5e-4"] * 9 + ["0"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("sdxl")
    tiny.pictures(folder / "1_sks cat", 2, (64, 64))
    places = [*tiny.sdxl(folder, depths=(0, 1, 1)).arguments, "--train_data_dir", str(folder)]
    return Runs("sdxl_train", places, SHORT.split(), folder / "outs")


@pytest.mark.slow
@pytest.mark.parametrize("way", FUSED)
def test_weights_of_all_parts_are_the_same(way: str, run: Runs) -> None:
    accumulated = FUSED[way][2:] if "two batches" in way else ()
    assert differing(run.plain(*accumulated), run("fused", *FUSED[way])) == []


def test_every_share_resumes_bit_for_bit(run: Runs) -> None:
    run("first", *SHARES, "--max_train_steps", "1", "--save_state")
    state = str(run.outs / "first" / "model-state")
    assert differing(run.plain(), run("second", *SHARES, "--resume", state)) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", FUSED)
def test_blocks_have_rates_of_their_own(way: str, run: Runs) -> None:
    accumulated = FUSED[way][2:] if "two batches" in way else ()
    assert differing(run.plain(*BLOCKS, *accumulated), run("fused", *BLOCKS, *FUSED[way])) == []
