"""Every kind of adapter, and those of LyCORIS, train through the scripts and load again."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sfumato.cli.main import script
from tests import tiny

SHORT = "--resolution 64 --caption_extension .txt --network_dim 2 --learning_rate 1e-2 --max_train_steps 2"
LYCORIS_LOHA = "lycoris.kohya algo=loha preset=full conv_dim=2 conv_alpha=1"
LYCORIS_LOKR = "lycoris.kohya algo=lokr factor=4"
RUNS = [
    ("sd", "networks.loha", "hada_w2_a"),
    ("sd", LYCORIS_LOKR, "lokr_w2"),
    ("sdxl", "networks.lokr", "lokr_w2"),
    ("sdxl", LYCORIS_LOHA, "hada_w2_a"),
    ("flux", "networks.loha", "hada_w2_a"),
    ("flux", LYCORIS_LOKR, "lokr_w2"),
    ("sd", "networks.lora_fa conv_dim=2 conv_alpha=1", "weight"),
    ("sdxl", "networks.lora_fa", "weight"),
    ("flux", "networks.lora_flux network_reg_dims=img_mod=1 network_reg_lrs=single=1e-2", "weight"),
    ("sd", "networks.dylora unit=1 conv_dim=2", "weight"),
    ("sdxl", "networks.dylora unit=2", "weight"),
    ("sd", "networks.oft enable_all_linear=True enable_conv=True", "oft_blocks"),
    ("sdxl", "networks.oft enable_all_linear=False", "oft_blocks"),
    ("flux", "networks.oft_flux enable_all_linear=True", "0"),
]
"""Family, kind, and the tensors that are zero before training."""
SCRIPTS = {
    "sd": ("train_network", "te_text_model", "unet_mid_block"),
    "sdxl": ("sdxl_train_network", "te2_text_model", "unet_middle_block"),
    "flux": ("flux_train_network", "unet_double_blocks", "unet_single_blocks"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_cat", 2)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd": tiny.sd(folder / "sd").arguments,
        "sdxl": tiny.sdxl(folder / "sdxl").arguments,
        "flux": [*tiny.flux(folder / "flux").arguments, "--network_train_unet_only"],
    }


@pytest.mark.parametrize(("family", "kind", "zeros"), RUNS)
def test_a_kind_trains_and_goes_on_from_its_file(
    family: str, kind: str, zeros: str, models: dict[str, list[str]], pictures: Path, tmp_path: Path
) -> None:
    module, *network_args = kind.split()
    name, *starts = SCRIPTS[family]
    places = ["--train_data_dir", str(pictures), "--output_dir", str(tmp_path), "--output_name", "x"]
    network = ["--network_module", module, *(["--network_args", *network_args] if network_args else [])]
    command = [*models[family], *places, "--max_data_loader_n_workers", "0", *shlex.split(SHORT), *network]
    assert script(name, command) == 0
    path = tmp_path / "x.safetensors"
    first = load_file(path)
    prefix, has_text = ("oft", False) if "oft" in module else ("lora", True)
    for start in starts if has_text else starts[1:]:
        assert any(key.startswith(f"{prefix}_{start}") for key in first), start
    learned = [tensor for key, tensor in first.items() if key.rpartition(".")[2].startswith(zeros)]
    assert sum(bool(tensor.any()) for tensor in learned) > 0.7 * len(learned)
    assert script(name, [*command, "--network_weights", str(path), "--output_name", "y"]) == 0
    second = load_file(tmp_path / "y.safetensors")
    assert first.keys() == second.keys()
    assert not all(torch.equal(first[key], second[key]) for key in first)
