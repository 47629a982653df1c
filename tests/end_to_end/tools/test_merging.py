"""Merged checkpoints: weighted sums of what all have, the first one's of everything else."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from sfumato.tools.merging import merging
from tests import tiny

UNET = "model.diffusion_model."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    return [tiny.sd(folder / str(seed), seed=10 * seed).path for seed in range(3)]


def merge(models: list[Path], output: Path, *options: str) -> dict[str, torch.Tensor]:
    argv = ["--models", *map(str, models), "--output", str(output), *options]
    assert script("tools/merge_models", argv) == 0
    return load_file(output)


def test_equal_shares_are_the_mean(models: list[Path], tmp_path: Path) -> None:
    merged = merge(models, tmp_path / "merged.safetensors")
    sources = [load_file(path) for path in models]
    assert merged.keys() == sources[0].keys()
    for name, value in merged.items():
        if value.is_floating_point():
            mean = torch.stack([source[name] for source in sources]).mean(0)
            torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)
        else:
            assert torch.equal(value, sources[0][name])


def test_ratios_count_as_given(models: list[Path], tmp_path: Path) -> None:
    merged = merge(models[:2], tmp_path / "merged.safetensors", "--ratios", "1.5", "-0.25")
    first, second = load_file(models[0]), load_file(models[1])
    name = f"{UNET}middle_block.0.in_layers.2.weight"
    torch.testing.assert_close(merged[name], 1.5 * first[name] - 0.25 * second[name])


def test_unets_alone_are_merged_where_asked_for(models: list[Path], tmp_path: Path) -> None:
    merged = merge(models[:2], tmp_path / "merged.safetensors", "--unet_only")
    first, second = load_file(models[0]), load_file(models[1])
    for name, value in merged.items():
        is_unet = name.startswith(UNET)
        same = torch.equal(value, first[name])
        assert same != is_unet or torch.equal(first[name], second[name]), name


def test_a_tensor_that_a_later_model_lacks_is_the_first_ones_and_one_that_the_first_lacks_is_left_out(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = load_file(models[1])
    lacking, foreign = f"{UNET}out.2.bias", "model_ema.decay"
    del other[lacking]
    save_file({**other, foreign: torch.ones(1)}, tmp_path / "other.safetensors")
    pair = [models[0], tmp_path / "other.safetensors"]
    merged = merge(pair, tmp_path / "merged.safetensors", "--ratios", "0.5", "0.25", "--show_skipped")
    torch.testing.assert_close(merged[lacking], 0.75 * load_file(models[0])[lacking])
    assert foreign not in merged
    shown = capsys.readouterr().err
    assert lacking in shown
    assert foreign in shown


def test_older_names_of_text_encoders_are_the_same_tensors(models: list[Path], tmp_path: Path) -> None:
    older = {
        name.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): value
        for name, value in load_file(models[1]).items()
    }
    save_file(older, tmp_path / "older.safetensors")
    merged = merge([models[0], tmp_path / "older.safetensors"], tmp_path / "a.safetensors")
    expected = merge(models[:2], tmp_path / "b.safetensors")
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("float", torch.float32)]
)
def test_precisions_are_those_of_the_sum_and_of_the_file(
    name: str, dtype: torch.dtype, models: list[Path], tmp_path: Path
) -> None:
    pair, key = models[:2], f"{UNET}out.2.weight"
    first, second = (load_file(path)[key] for path in pair)
    saved = merge(pair, tmp_path / "saved.safetensors", "--saving_precision", name)[key]
    assert torch.equal(saved, (first * 0.5 + second * 0.5).to(dtype))
    computed = merge(pair, tmp_path / "computed.safetensors", "--precision", name)[key]
    assert torch.equal(computed, (first.to(dtype) * 0.5 + second.to(dtype) * 0.5).float())


def test_the_suffix_is_added_and_a_model_can_be_replaced_by_the_result(
    models: list[Path], tmp_path: Path
) -> None:
    first = tmp_path / "first.safetensors"
    first.write_bytes(models[0].read_bytes())
    expected = merge(models[:2], tmp_path / "expected.safetensors")
    argv = ["--models", str(first), str(models[1]), "--output", str(tmp_path / "first")]
    assert main(["merge-models", *argv]) == 0
    merged = load_file(first)
    assert all(torch.equal(merged[name], value) for name, value in expected.items())


def test_one_tensor_of_the_result_is_in_memory_at_a_time(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []
    whole = merging.weighted_sum

    def watched(tensors: Iterable[torch.Tensor], ratios: Iterable[float]) -> torch.Tensor:
        alive.append(sum(tensor() is not None for tensor in made))
        made.append(weakref.ref(total := whole(tensors, ratios)))
        return total

    monkeypatch.setattr(merging, "weighted_sum", watched)
    merge(models, tmp_path / "merged.safetensors")
    assert len(alive) > 500
    assert max(alive) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output a", "--models is not given"),
        ("--models {0} {1}", "--output is not given"),
        ("--models {0} {1} --output a --ratios 1", "--ratios has 1 numbers for 2 models"),
        ("--models {0} b.ckpt --output a", "only .safetensors files are merged"),
        ("--models {0} nothing.safetensors --output a", "does not exist"),
        ("--models {0} lora.safetensors --output a", "shares no tensor"),
        ("--models {0} wide.safetensors --output a", "merge models of one architecture"),
        ("--models {0} {1} --output a --device warp", "--device is warp"),
        ("--models {0} {1} --output a --precision fp8", "invalid choice"),
    ],
)
def test_mistakes_are_one_line(
    options: str,
    message: str,
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    save_file({f"{UNET}out.2.weight": torch.zeros(4, 99, 3, 3)}, tmp_path / "wide.safetensors")
    assert script("tools/merge_models", options.format(*models).split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "a.safetensors").exists()
