"""Every kind of adapter, and those of LyCORIS, train through the scripts and load again."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from sfumato.cli.main import script
from tests import tiny
from tests.runs import others_slow

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
    ("flux", "networks.lora_flux split_qkv=True ggpo_sigma=0.03 ggpo_beta=0.01", "weight"),
]
OFTEN = [
    row
    for row in RUNS
    if row[0] != "sdxl" or not row[1].startswith(("networks.lora_fa", "networks.dylora", "networks.oft"))
]
"""What normal runs try: LoRA-FA, DyLoRA and OFT with one U-Net only."""
"""Family, kind, and the tensors that are zero before training."""
SCRIPTS = {
    "sd": ("train_network", "te_text_model", "unet_mid_block"),
    "sdxl": ("sdxl_train_network", "te2_text_model", "unet_middle_block"),
    "flux": ("flux_train_network", "unet_double_blocks", "unet_single_blocks"),
}


SPECS = {
    "sd": ("sd_v1", "stable-diffusion-v1", "diffusers"),
    "sdxl": (
        "sdxl_base_v1-0",
        "stable-diffusion-xl-v1-base",
        "https://github.com/Stability-AI/generative-models",
    ),
    "flux": ("flux1", "flux-1-dev", "https://github.com/black-forest-labs/flux"),
}
"""What files tell of each family: version, architecture and implementation."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
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


@pytest.mark.parametrize(("family", "kind", "zeros"), others_slow(RUNS, OFTEN))
def test_a_kind_trains_and_goes_on_from_its_file(
    family: str, kind: str, zeros: str, models: dict[str, list[str]], images: Path, tmp_path: Path
) -> None:
    module, *network_args = kind.split()
    name, *starts = SCRIPTS[family]
    places = ["--train_data_dir", str(images), "--output_dir", str(tmp_path), "--output_name", "x"]
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
    assert_told(path, family, kind, "1")
    again = ["--network_weights", str(path), "--output_name", "y", "--network_alpha", "2"]
    assert script(name, [*command, *again]) == 0
    assert_told(tmp_path / "y.safetensors", family, kind, "2.0")
    second = load_file(tmp_path / "y.safetensors")
    assert first.keys() == second.keys()
    assert not all(torch.equal(first[key], second[key]) for key in first)


def assert_told(path: Path, family: str, kind: str, alpha: str) -> None:
    """Assert that a file tells how it was trained, and hashes that other writers come to."""
    with safe_open(path, "pt") as file:
        record = file.metadata()
    module, *network_args = kind.split()
    version, architecture, implementation = SPECS[family]
    assert record["ss_base_model_version"] == version
    assert (record["ss_network_module"], record["ss_network_dim"], record["ss_network_alpha"]) == (
        module,
        "2",
        alpha,
    )
    arguments = dict(pair.split("=", 1) for pair in network_args)
    told = json.loads(record["ss_network_args"]) if network_args else record.get("ss_network_args")
    assert told == ({**arguments, "dropout": None} if network_args else None)
    assert record["modelspec.architecture"] == f"{architecture}/lora"
    assert record["modelspec.implementation"] == implementation
    assert record["modelspec.title"] == path.stem
    assert record["modelspec.resolution"] == "64x64"
    assert record.get("modelspec.prediction_type") == (None if family == "flux" else "epsilon")
    own = {key: text for key, text in record.items() if key.startswith("sshs_")}
    if (family, module) == ("flux", "lycoris.kohya"):  # nothing is renamed, and LyCORIS' own file stays
        assert len(own["sshs_model_hash"]) == 66
    else:
        assert own == hashes(load_file(path), record)


def hashes(tensors: dict[str, Tensor], record: dict[str, str]) -> dict[str, str]:
    """Return both hashes of a file that another writer makes, which has only what training tells in it."""
    data = save(tensors, {key: value for key, value in record.items() if key.startswith("ss_")})
    start = 8 + int.from_bytes(data[:8], "little")
    return {
        "sshs_model_hash": hashlib.sha256(data[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }
