"""LoRAs of the difference of two models: what was merged comes back, and acts as it did."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.selection import Size
from sfumato.adapters.sd_scripts.blocks import BlockRule
from sfumato.cli.main import main, script
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.publishing import Publishing, tensors_of
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.whole_models import open_model
from sfumato.tools.extracting.extraction import Pair
from tests import tiny
from tests.pipelines import flux_weights
from tests.runs import others_slow

RANK, CONV_RANK = 3, 2
CPU = torch.device("cpu")


def layer_of(target: AdapterTarget) -> Lora | None:
    """Return a LoRA of a layer with random numbers in it."""
    size = BlockRule(Size(RANK), Size(CONV_RANK)).size_of(target)
    if size is None or "mlp_2" in target.name:
        return None
    layer = Lora(target, size.rank)
    nn.init.normal_(layer.lora_up.weight, std=0.1)
    return layer


def tuned_by_a_lora(model: Path) -> tuple[Path, Path]:
    """Write a LoRA, and beside a model the same with the LoRA merged in; return the LoRA and that model."""
    torch.manual_seed(0)
    _, family = open_model(str(model), "--model", InsistenceOptions())
    with family.published(DENOISER) as opened:
        names = [part for part in (*family.text_outputs, DENOISER) if part in opened.modules]
    parts = {name: family.load(name, torch.float32, CPU) for name in names}
    targets = [target for name in names for target in family.adapter_targets(name, parts[name])]
    network = AdapterNetwork.from_targets(targets, layer_of)
    lora, tuned = (model.parent / f"{name}.safetensors" for name in ("lora", "tuned"))
    network.save(lora, torch.float32, {})
    network.merge(1.0)
    save(family, parts, tuned)
    return lora, tuned


def save(family: Family, parts: dict[str, nn.Module], path: Path) -> None:
    trained = {name: tensors_of(part) for name, part in parts.items()}
    family.write(trained, path, Publishing(dtype=torch.float32))


def products(path: Path) -> dict[str, Tensor]:
    tensors = load_file(path)
    names = {name.partition(".")[0] for name in tensors}
    return {name: _product({way: tensors[f"{name}.{way}"] for way in _WAYS}) for name in names}


_WAYS = ("lora_up.weight", "lora_down.weight", "alpha")


def _product(layer: dict[str, Tensor]) -> Tensor:
    up, down = layer["lora_up.weight"].flatten(1), layer["lora_down.weight"].flatten(1)
    return up @ down * layer["alpha"] / len(down)


def make(kind: str, folder: Path) -> tuple[Path, list[str]]:
    """Return a tiny model and what `sfumato generate` must be told to draw with it."""
    if kind == "flux":
        model = tiny.flux(folder, dtype=torch.float32)
        return model.transformer, model.generation_arguments
    version = tiny.sdxl(folder) if kind == "sdxl" else tiny.sd(folder, v2=kind == "sd2")
    return version.path, [{"sd2": "sd"}.get(kind, kind), *version.arguments]


def draw(arguments: list[str], model: Path, other: Path, folder: Path, *options: str) -> np.ndarray:
    """Return an image that `other` draws in the place of a model."""
    swapped = [str(other) if word == str(model) else word for word in arguments]
    common = shlex.split("--width 64 --height 64 --steps 2 --seed 5 --dtype fp32 --prompt 'a red cat'")
    assert main(["generate", *swapped, *common, "--output_dir", str(folder), *options]) == 0
    (path,) = folder.glob("*.png")
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("kind", others_slow(["flux", "sd", "sd2", "sdxl"], ["flux", "sd2", "sdxl"]))
def test_what_was_merged_comes_back_and_draws_the_same_image(kind: str, tmp_path: Path) -> None:
    model, arguments = make(kind, tmp_path)
    lora, tuned = tuned_by_a_lora(model)
    found = tmp_path / "found.safetensors"
    argv = ["extract-lora", "--model_org", str(model), "--model_tuned", str(tuned), "--save_to", str(found)]
    assert main([*argv, "--dim", str(RANK), "--conv_dim", str(CONV_RANK)]) == 0
    before, after = products(lora), products(found)
    assert after.keys() == before.keys()
    for name, product in before.items():
        assert (after[name] - product).norm() / product.norm() < 1e-4, name
    shapes = [{name: value.shape for name, value in load_file(path).items()} for path in (lora, found)]
    assert shapes[0] == shapes[1]
    if kind == "sd2":
        return
    images = {
        "plain": draw(arguments, model, model, tmp_path / "plain"),
        "merged": draw(arguments, model, tuned, tmp_path / "merged"),
        "live": draw(arguments, model, model, tmp_path / "live", "--lora_weights", str(lora)),
        "extracted": draw(arguments, model, model, tmp_path / "extracted", "--lora_weights", str(found)),
    }
    assert np.abs(images["plain"] - images["merged"]).mean() > 1
    for name in ("live", "extracted"):
        assert np.abs(images[name] - images["merged"]).max() <= 1, name


def test_folders_in_diffusers_layout_are_compared_with_files(tmp_path: Path) -> None:
    model = tiny.sd(tmp_path).path
    lora, tuned = tuned_by_a_lora(model)
    folder = tiny.sd(tmp_path / "again", as_folder=True).path
    found = tmp_path / "found.safetensors"
    argv = f"--model_org {folder} --model_tuned {tuned} --save_to {found} --dim {RANK} --clamp_quantile 1"
    assert script("networks/extract_lora_from_models", argv.split()) == 0
    before, after = products(lora), products(found)
    flat = {name for name, value in before.items() if name in after}
    assert after.keys() == flat
    assert 0 < len(flat) < len(before)  # nothing of wide kernels, which are left out without --conv_dim
    for name in flat:
        assert (after[name] - before[name]).norm() / before[name].norm() < 1e-4, name


def test_flux_in_diffusers_layout_in_8_bits_and_pickled_models_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tiny.flux(tmp_path, dtype=torch.float32).transformer
    folder = tmp_path / "folder" / "transformer"
    folder.mkdir(parents=True)
    save_file(flux_weights(load_file(plain)), folder / "diffusion_pytorch_model.safetensors")
    eight_bit = tiny.flux(tmp_path / "8", dtype=torch.float8_e4m3fn).transformer
    found = tmp_path / "found.safetensors"
    assert script("networks/flux_extract_lora", _argv(folder.parent, plain, found)) == 2
    assert "its layers are those of --model_org" in capsys.readouterr().err
    assert script("networks/flux_extract_lora", _argv(plain, eight_bit, found)) == 0
    key = "double_blocks.0.img_attn.proj.weight"
    change = load_file(eight_bit)[key].float() - load_file(plain)[key]
    expected = torch.linalg.svdvals(change)[:4].norm()
    product = products(found)["lora_unet_double_blocks_0_img_attn_proj"]
    torch.testing.assert_close(product.norm(), expected, rtol=1e-3, atol=0)
    deeper = tiny.flux(tmp_path / "deeper", dtype=torch.float32, depth=3).transformer
    for pair, which in (((plain, deeper), "org"), ((deeper, plain), "tuned")):
        assert script("networks/flux_extract_lora", _argv(*pair, tmp_path / "no.safetensors")) == 2
        error = f"--model_{which} lacks unet_double_blocks_2_img_mod_lin; use two models of one architecture"
        assert error in capsys.readouterr().err
    pickled, again = (tiny.sd(tmp_path, suffix=suffix).path for suffix in (".ckpt", ".safetensors"))
    assert script("networks/extract_lora_from_models", _argv(pickled, again, found)) == 2
    assert "its layers are those of --model_org" in capsys.readouterr().err


def _argv(original: Path, tuned: Path, target: Path) -> list[str]:
    return f"--model_org {original} --model_tuned {tuned} --save_to {target} --clamp_quantile 1".split()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return two Stable Diffusion 1 of different weights."""
    folder = tmp_path_factory.mktemp("models")
    return tiny.sd(folder / "a").path, tiny.sd(folder / "b", seed=50).path


def extract(
    models: tuple[Path, Path], target: Path, options: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    argv = f"--model_org {models[0]} --model_tuned {models[1]} --save_to {target} {options}"
    assert script("networks/extract_lora_from_models", argv.split()) == 0
    with safe_open(target, "pt") as file:
        return load_file(target), file.metadata()


def test_a_file_says_what_it_was_made_of(models: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "made.safetensors"
    tensors, metadata = extract(models, target, "--conv_dim 1 --save_precision bf16 --v_parameterization")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    expected = {
        "ss_v2": "False",
        "ss_base_model_version": "sd_v1_v",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4.0",
        "modelspec.title": "made",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.prediction_type": "v",
    }
    assert {key: metadata[key] for key in expected} == expected
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "1", "conv_alpha": "1.0"}
    assert len(metadata["sshs_model_hash"]) == 64
    _, bare = extract(models, target, "--no_metadata")
    assert not any(key.startswith("modelspec.") for key in bare)
    assert bare["ss_base_model_version"] == "sd_v1"


def test_text_encoders_that_hardly_differ_are_left_out(models: tuple[Path, Path], tmp_path: Path) -> None:
    whole, _ = extract(models, tmp_path / "whole.safetensors", "")
    assert any(name.startswith("lora_te_text_model_encoder_layers_0") for name in whole)
    bare, _ = extract(models, tmp_path / "bare.safetensors", "--min_diff 100")
    assert {name for name in whole if name.startswith("lora_unet")} == bare.keys()


def test_random_directions_miss_hardly_more_than_the_whole_decomposition(
    models: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["extract-lora", "--model_org", str(models[0]), "--model_tuned", str(models[1]), "--dim", "2"]
    errors = []
    first, second = (load_file(path) for path in models)
    name = "model.diffusion_model.input_blocks.7.1.transformer_blocks.0.ff.net.0.proj.weight"
    change = second[name] - first[name]
    assert min(change.shape) > 48  # wide enough for random directions
    layer = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_0_ff_net_0_proj"
    for option in ("--verbose", "--exact"):
        target = tmp_path / f"{option}.safetensors"
        assert main([*argv, "--save_to", str(target), option]) == 0
        errors.append((products(target)[layer] - change).norm() / change.norm())
    assert errors[1] <= errors[0] < 1.01 * errors[1]
    assert errors[1] == pytest.approx(
        torch.linalg.svdvals(change)[2:].norm().item() / change.norm().item(), rel=1e-4
    )
    printed = capsys.readouterr().err
    assert f"{layer}: rank 2 misses {errors[0]:.2%} of the change's norm; any must miss" in printed
    assert "the LoRA misses" in printed


def test_weights_are_rounded_before_they_are_compared_where_asked_for(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    rounded = tmp_path / "rounded.safetensors"
    source = load_file(models[0])
    save_file({k: v.bfloat16() if v.is_floating_point() else v for k, v in source.items()}, rounded)
    pair = (models[0], rounded)
    found, _ = extract(pair, tmp_path / "found.safetensors", "--min_diff 0")
    assert len(found) > 100
    same = f"--model_org {pair[0]} --model_tuned {pair[1]} --save_to {tmp_path}/o.pt --load_precision bf16"
    assert script("networks/extract_lora_from_models", same.split()) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("--model_org {a} --model_tuned {b}", "--save_to must be given"),
        ("--model_org {a} --model_tuned {b} --save_to x.bmp", "end it in .safetensors"),
        ("--model_org {a} --model_tuned {b} --save_to {b}", "is read, too, and would be lost"),
        ("--model_org {a} --model_tuned {a} --save_to x.pt", "its layers are those of --model_org"),
        (
            "--model_org {a} --model_tuned none.ckpt --save_to x.pt",
            "--model_tuned is none.ckpt, which does not",
        ),
        ("--model_org {a} --model_tuned {wide} --save_to x.pt", "use two models of one architecture"),
        ("--model_org {a} --model_tuned {xl} --save_to x.pt", "use two models of one architecture"),
        ("--model_org {a} --model_tuned {broken} --save_to x.pt --min_diff 9", "values that are no numbers"),
        (
            "--model_org {a} --model_tuned {dark} --save_to x.pt --min_diff 9",
            "--model_tuned {dark}: lora_te_",
        ),
        ("--model_org {a} --model_tuned {b} --save_to x.pt --v2", "--v2 is given"),
        ("--model_org {a} --model_tuned {b} --save_to x.pt --sdxl", "--sdxl is given"),
        ("--model_org {flux} --model_tuned {flux} --save_to x.pt --v2", "--v2 is given"),
        ("--model_org {a} --model_tuned {b} --save_to x.pt --dim 0", "a rank is 1 or more"),
        ("--model_org {a} --model_tuned {b} --save_to x.pt --clamp_quantile 0.4", "use more than 0.5"),
        ("--model_org {a} --model_tuned {b} --save_to x.pt --device abacus", "this machine has not"),
    ],
)
def test_mistakes_are_one_line(
    options: str,
    complaint: str,
    models: tuple[Path, Path],
    others: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = options.format(a=models[0], b=models[1], **others).split()
    assert script("networks/extract_lora_from_models", argv) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert complaint.format(**others) in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory, models: tuple[Path, Path]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("others")
    broken = load_file(models[1])
    broken["model.diffusion_model.middle_block.1.proj_in.weight"][0] = torch.nan
    save_file(broken, folder / "broken.safetensors")
    dark = load_file(models[1])
    next(value for name, value in dark.items() if name.endswith("layers.0.mlp.fc1.weight"))[0] = torch.nan
    save_file(dark, folder / "dark.safetensors")
    return {
        "wide": tiny.sd(folder / "wide", widths=(32, 64, 64, 64)).path,
        "xl": tiny.sdxl(folder / "xl").path,
        "broken": folder / "broken.safetensors",
        "dark": folder / "dark.safetensors",
        "flux": tiny.flux(folder / "flux").transformer,
    }


def test_the_changes_of_two_layers_are_in_memory_at_a_time(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, used = Pair.change, []

    def watched(pair: Pair, dtype: torch.dtype | None, scratch: Tensor) -> Tensor:
        matrix = change(pair, dtype, scratch)
        used.append((matrix.data_ptr(), matrix.numel(), scratch.numel()))
        return matrix

    monkeypatch.setattr(Pair, "change", watched)
    tensors, _ = extract(models, tmp_path / "lora.safetensors", "--conv_dim 2")
    denoiser = [row for row in used if row[2] == max(row[2] for row in used)]
    assert len(denoiser) == len(tensors) / 3 > 100
    assert len({place for place, *_ in denoiser}) == 2
    assert max(size for _, size, _ in denoiser) == denoiser[0][2]


def test_a_crash_leaves_the_file_that_was_there(
    models: tuple[Path, Path], others: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "kept.safetensors"
    target.write_bytes(b"kept")
    argv = f"--model_org {models[0]} --model_tuned {others['broken']} --save_to {target}"
    assert script("networks/extract_lora_from_models", argv.split()) == 2
    assert target.read_bytes() == b"kept"
