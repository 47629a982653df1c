"""Tensors of a base that are for other programs stay in whatever is written of it, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.checkpoints.header import read_header
from sfumato.cli.main import script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.publishing import Publishing, tensors_of
from sfumato.models.registry.families import family_for
from tests import tiny

FOREIGN = {
    "v_pred": torch.empty(0),
    "ztsnr": torch.ones(1),
    "made_up": torch.tensor([[0.1, 1e-9]], dtype=torch.float64),
    "denoiser.made_up": torch.tensor([0.3], dtype=torch.float32),
}
MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd": lambda folder: tiny.sd(folder).path,
    "sdxl": lambda folder: tiny.sdxl(folder).path,
    "flux": lambda folder: Path(tiny.flux(folder).transformer),
}


@pytest.fixture(scope="module", params=MAKERS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    path = MAKERS[request.param](folder)
    save_file({**load_file(path), **FOREIGN}, folder / "base.safetensors")
    return request.param, path, folder / "base.safetensors"


def kept(path: Path, foreign: dict[str, Tensor] = FOREIGN) -> bool:
    found = torch.load(path, weights_only=True)["state_dict"] if path.suffix == ".ckpt" else load_file(path)
    return all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in foreign.items()
    )


def bound(name: str, path: Path) -> Family:
    return family_for(Run("some_script", name, [ModelConfig(pretrained_model_name_or_path=str(path))]))


def lora(path: Path, name: str, base: Path) -> Path:
    """Write a LoRA for one layer."""
    model = bound(name, base).load(DENOISER, torch.float32, torch.device("meta"))
    targets = bound(name, base).adapter_targets(DENOISER, model)
    target = next(target for target in targets if isinstance(target.module, nn.Linear))
    rows, columns = target.module.weight.shape
    layer = f"lora_{target.name}"
    save_file(
        {f"{layer}.lora_down.weight": torch.ones(1, columns), f"{layer}.lora_up.weight": torch.ones(rows, 1)},
        path,
    )
    return path


def test_merging_adapters_keeps_them(base: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, plain, path = base
    tool = {"sd": "merge_lora", "sdxl": "sdxl_merge_lora", "flux": "flux_merge_lora"}[name]
    argv = ["--flux_model" if name == "flux" else "--sd_model", str(path), "--save_precision", "bf16"]
    argv += ["--models", str(lora(tmp_path / "lora.safetensors", name, plain)), "--ratios", "1"]
    for suffix in ("safetensors", "ckpt") if name == "sd" else ("safetensors",):
        out = tmp_path / f"out.{suffix}"
        assert script(f"networks/{tool}", [*argv, "--save_to", str(out)]) == 0
        assert kept(out)
    if name != "flux":
        assert read_header(tmp_path / "out.safetensors").metadata["modelspec.prediction_type"] == "v"


def test_merging_models_keeps_them(base: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, _plain, path = base
    other = tmp_path / "other.safetensors"
    save_file({**load_file(path), "made_up": torch.ones(7)}, other)
    out = tmp_path / "out.safetensors"
    argv = ["--models", str(path), str(other), "--ratios", "0.25", "0.25", "--saving_precision", "fp16"]
    assert script("tools/merge_models", [*argv, "--output", str(out)]) == 0
    # In a file without prefixes only a word alone is known to be no weight.
    assert kept(out, {key: value for key, value in FOREIGN.items() if name != "flux" or "." not in key})
    weight = next(key for key in load_file(path) if key.endswith("out.2.weight") or "img_in.weight" in key)
    torch.testing.assert_close(
        load_file(out)[weight].float(), load_file(path)[weight].float() / 2, rtol=2e-3, atol=1e-4
    )


def test_rewriting_a_file_keeps_them(base: tuple[str, Path, Path], tmp_path: Path) -> None:
    name, _plain, path = base
    for suffix in ("safetensors", "ckpt") if name == "sd" else ("safetensors",):
        out = tmp_path / f"out.{suffix}"
        assert script("tools/convert_diffusers20_original_sd", ["--fp16", str(path), str(out)]) == 0
        assert kept(out)


def test_a_whole_denoiser_that_was_trained_keeps_them(tmp_path: Path) -> None:
    folder, markers = tmp_path / "flux", {key: value for key, value in FOREIGN.items() if "." not in key}
    path = MAKERS["flux"](folder)
    save_file({**load_file(path), **markers}, folder / "base.safetensors")
    family = bound("flux", folder / "base.safetensors")
    model = family.load(DENOISER, torch.float32, torch.device("cpu"))
    for suffix in ("safetensors", "ckpt"):
        out = tmp_path / f"trained.{suffix}"
        family.write({DENOISER: tensors_of(model)}, out, Publishing(dtype=torch.bfloat16))
        found = load_file(out) if suffix == "safetensors" else torch.load(out, weights_only=True)
        found = found.get("state_dict", found)
        assert all(torch.equal(found[key], value) for key, value in markers.items())
        assert found.keys() == load_file(path).keys() | markers.keys()
