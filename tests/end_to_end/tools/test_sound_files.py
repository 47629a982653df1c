"""What every tool makes of layers that are switched off, and of values that are no numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.base_weights import BaseAdapters
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.cli.main import main, script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from tests import tiny

CPU = torch.device("cpu")
IS_OFF = "single_blocks"
TOUCHED = "double_blocks.0.img_attn.qkv.weight"
NAN = torch.tensor(torch.nan)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.flux(tmp_path_factory.mktemp("flux"), dtype=torch.float32).transformer


def family(model: Path) -> Family:
    texts = FluxOptions(
        clip_l=str(model.with_name("clip_l.safetensors")),
        t5xxl=str(model.with_name("t5xxl.safetensors")),
    )
    return family_for(Run("", "flux", [ModelConfig(pretrained_model_name_or_path=str(model)), texts]))


def lora(path: Path, model: Path, seed: int = 0) -> Path:
    """Write a LoRA of some layers of the denoiser with numbers everywhere."""
    bound = family(model)
    targets = list(
        bound.adapter_targets(DENOISER, bound.load(DENOISER, torch.bfloat16, torch.device("meta")))
    )
    chosen = [t for t in targets if t.is_default and t.name.endswith(("qkv", "proj", "linear2"))]
    network = AdapterNetwork(Lora(target, 2, 1.0) for target in chosen)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.save(path, None, {})
    return path


def switched(path: Path, target: Path, alpha: float | None) -> Path:
    """Write an adapter again with another alpha in some layers, or without them."""
    tensors = load_file(path)
    for key in list(tensors):
        if IS_OFF in key and alpha is None:
            del tensors[key]
        elif IS_OFF in key and key.endswith(".alpha"):
            tensors[key] = torch.tensor(alpha)
    save_file(tensors, target)
    return target


def products(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    return {
        name: tensors[f"{name}.lora_up.weight"]
        @ tensors[f"{name}.lora_down.weight"]
        * (tensors[f"{name}.alpha"] / tensors[f"{name}.lora_down.weight"].shape[0])
        for name in (key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha"))
    }


@pytest.fixture
def pair(model: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Return a LoRA with layers switched off, the same without these layers, and another LoRA of all."""
    path = lora(tmp_path / "a.safetensors", model)
    off, without = (tmp_path / f"{name}.safetensors" for name in ("off", "without"))
    other = lora(tmp_path / "b.safetensors", model, seed=1)
    return switched(path, off, 0.0), switched(path, without, None), other


def test_a_model_becomes_the_same_with_layers_that_are_off_as_without_them(
    model: Path, pair: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results: list[Sequence[dict[str, Tensor]]] = []
    for path in pair[:2]:
        out = tmp_path / f"merged-{path.name}"
        argv = ["--flux_model", str(model), "--save_to", str(out), "--models", str(path), "--ratios", "0.7"]
        assert script("networks/flux_merge_lora", argv) == 0
        bound, states = family(model), [load_file(out)]
        attached = Attachments(bound, [AdapterFile(path, 0.7)], dtype=torch.float32, is_merged=True)
        based, modules = (
            BaseAdapters(bound, [str(path)], [0.7]),
            [bound.load(DENOISER, torch.float32, CPU) for _ in range(2)],
        )
        attached(DENOISER, modules[0])
        based(DENOISER, modules[1], CPU)
        states += [module.state_dict() for module in modules]
        results.append(states)
    for off, without in zip(*results, strict=True):
        assert off.keys() == without.keys()
        assert all(torch.equal(value, without[name]) for name, value in off.items())
    assert not torch.equal(results[0][0][TOUCHED], load_file(model)[TOUCHED])
    assert "2 layers are switched off by an alpha of 0" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["", "--concat", "--new_rank 8"], ids=["sum", "concat", "svd"])
def test_an_adapter_becomes_the_same_and_what_is_off_everywhere_stays_off(
    options: str, pair: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    off, without, other = pair
    tool, found = ("svd_merge_lora" if "rank" in options else "flux_merge_lora"), []
    for path in (off, without):
        out = tmp_path / "out.safetensors"
        argv = ["--models", str(path), str(other), "--ratios", "0.5", "-2", "--save_to", str(out)]
        assert script(f"networks/{tool}", [*argv, *options.split()]) == 0
        found.append(products(out))
    assert found[0].keys() == found[1].keys()
    for name, product in found[0].items():
        torch.testing.assert_close(product, found[1][name], rtol=1e-4, atol=1e-6)
    argv = ["--models", str(off), str(off), "--ratios", "1", "1", "--save_to", str(out)]
    assert script(f"networks/{tool}", [*argv, *options.split()]) == 0
    alphas = {key: float(tensor) for key, tensor in load_file(out).items() if key.endswith(".alpha")}
    assert {key for key, alpha in alphas.items() if alpha == 0} == {key for key in alphas if IS_OFF in key}


def test_what_is_off_stays_off_at_another_rank_and_is_reported(
    pair: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert (
        script("networks/resize_lora", ["--model", str(pair[0]), "--save_to", str(out), "--new_rank", "1"])
        == 0
    )
    tensors = load_file(out)
    for key, tensor in tensors.items():
        if key.endswith(".alpha"):
            assert float(tensor) == (0 if IS_OFF in key else 0.5)
    assert all(tensor.any() for key, tensor in tensors.items() if "lora_" in key.rpartition("unet_")[2][4:])
    capsys.readouterr()
    assert script("networks/check_lora_weights", [str(out)]) == 0
    assert "2 layers are switched off: alpha 0" in capsys.readouterr().out


def test_an_adapter_that_is_broken_is_refused_by_every_tool(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = lora(tmp_path / "a.safetensors", model), tmp_path / "out.safetensors"
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith(".alpha"))
    save_file(tensors | {key: NAN}, path)
    out.write_bytes(b"before")
    save = ["--save_to", str(out)]
    merge = ["--models", str(path), "--ratios", "1", *save]
    cut = ["--model", str(path), *save]
    for name, argv in {
        "flux_merge_lora": [*merge, "--flux_model", str(model)],
        "svd_merge_lora": merge,
        "merge_lora": merge,
        "resize_lora": [*cut, "--new_rank", "1"],
        "extract_lora_from_dylora": [*cut, "--unit", "1"],
        "convert_flux_lora": [
            *("--src", "sd-scripts", "--dst", "ai-toolkit", "--src_path", str(path), "--dst_path", str(out))
        ],
    }.items():
        assert script(f"networks/{name}", argv) == 2, name
        assert f"{path}: {key} holds values that are no numbers" in capsys.readouterr().err, name
    assert out.read_bytes() == b"before"


def with_nan(source: Path, target: Path, name: str) -> Path:
    tensors = load_file(source)
    broken = tensors[name].clone()
    broken.view(-1)[0] = torch.nan
    save_file(tensors | {name: broken}, target)
    return target


def test_a_broken_base_is_refused_where_it_is_changed_and_copied_where_it_is_not(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = lora(tmp_path / "a.safetensors", model), tmp_path / "out.safetensors"
    merge = ["--models", str(path), "--ratios", "1", "--save_to", str(out)]
    touched = with_nan(model, tmp_path / "touched.safetensors", TOUCHED)
    assert main(["merge", "flux", *merge, "--flux_model", str(touched)]) == 2
    assert (
        f"{TOUCHED} holds values that are no numbers (NaN or inf), as in {touched}" in capsys.readouterr().err
    )
    assert not out.exists()
    untouched = with_nan(model, tmp_path / "untouched.safetensors", "img_in.bias")
    assert main(["merge", "flux", *merge, "--flux_model", str(untouched)]) == 0
    said = capsys.readouterr().err
    assert said.count("1 tensor holds values that are no numbers, copied as they are (img_in.bias ...)") == 1
    assert load_file(out)["img_in.bias"].isnan().sum() == 1


def test_sums_of_models_and_narrow_formats_are_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [tmp_path / f"{name}.safetensors" for name in "ab"]
    out, name = tmp_path / "out.safetensors", "model.diffusion_model.x.weight"
    save_file({name: torch.tensor([6e4, 1.0])}, sources[0])
    argv = ["--models", *map(str, sources), "--ratios", "1", "1", "--output", str(out)]
    for value, options, said in (
        (torch.nan, "", f"{name} holds values that are no numbers (NaN or inf), as in {sources[1]}"),
        (6e4, "--saving_precision fp16", f"{name} reaches 1.2e+05, too large for fp16; save it in bf16"),
    ):
        save_file({name: torch.tensor([value, 1.0])}, sources[1])
        assert script("tools/merge_models", [*argv, *options.split()]) == 2
        assert said in capsys.readouterr().err
    assert not out.exists()
    assert script("tools/merge_models", argv) == 0


def test_a_conversion_keeps_what_is_broken_and_refuses_what_it_would_break(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, script_name = tiny.sd(tmp_path / "sd").path, "tools/convert_diffusers20_original_sd"
    name = "model.diffusion_model.out.2.bias"
    for base, key, target in (
        (checkpoint, name, "out.safetensors"),
        (checkpoint, name, "out.ckpt"),
        (model, "img_in.bias", "out"),
    ):
        tensors = load_file(base)
        for value, status, said in (
            (torch.nan, 0, "1 tensor holds values that are no numbers, copied as they are"),
            (1e5, 2, "reaches 1e+05, too large for fp16; save it in bf16"),
        ):
            save_file(tensors | {key: torch.full_like(tensors[key], value)}, tmp_path / "broken.safetensors")
            argv = [str(tmp_path / "broken.safetensors"), str(tmp_path / target), "--fp16"]
            assert script(script_name, argv) == status
            assert said in capsys.readouterr().err
