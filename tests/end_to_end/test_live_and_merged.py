"""Every kind of adapter draws the same image beside the weights, merged into them, and into their files."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.cli.main import main, script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import Family
from sfumato.models.registry.families import family_for
from tests import tiny
from tests.runs import others_slow

KINDS = {
    "lora": ("flux", "networks.lora_flux", 4, 2.0, ()),
    "lora split": ("flux", "networks.lora_flux", 2, 1.0, ("split_qkv=True", "train_t5xxl=True")),
    "loha flux": ("flux", "networks.loha", 2, 2.0, ()),
    "lokr flux": ("flux", "networks.lokr", 2, 2.0, ("factor=4",)),
    "oft flux": ("flux", "networks.oft_flux", 4, 1e-1, ("enable_all_linear=True",)),
    "c3lier": ("sd", "networks.lora", 4, 2.0, ("conv_dim=2", "conv_alpha=1")),
    "lora_fa": ("sd", "networks.lora_fa", 4, 2.0, ()),
    "dylora": ("sd", "networks.dylora", 4, 2.0, ("unit=2", "conv_dim=4")),
    "loha": ("sd", "networks.loha", 2, 2.0, ("conv_dim=2", "use_tucker=True")),
    "lokr": ("sd", "networks.lokr", 2, 2.0, ("conv_dim=2", "factor=4")),
    "oft": ("sd", "networks.oft", 4, 1e-2, ("enable_all_linear=True", "enable_conv=True")),
    "lora_fa xl": ("sdxl", "networks.lora_fa", 4, 2.0, ("conv_dim=2",)),
    "dylora xl": ("sdxl", "networks.dylora", 4, 2.0, ("unit=1",)),
    "loha xl": ("sdxl", "networks.loha", 2, 2.0, ("conv_dim=2",)),
    "lokr xl": ("sdxl", "networks.lokr", 2, 2.0, ("factor=4",)),
    "oft xl": ("sdxl", "networks.oft", 4, 1e-2, ("enable_all_linear=True",)),
}
"""Family, module, rank, alpha and further arguments."""
OFTEN = ("lora", "lora split", "loha flux", "lokr flux", "oft flux")
OFTEN += ("c3lier", "lora_fa", "dylora", "loha", "lokr xl", "oft xl")
"""What normal runs try: each kind of adapter once or twice, and each family."""
MERGING = {"sd": "merge_lora", "sdxl": "sdxl_merge_lora"}
COMMON = "--width 64 --height 64 --steps 1 --cfg_scale 1 --seed 5 --dtype fp32 --prompt cat"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], Family]]:
    folder = tmp_path_factory.mktemp("models")
    wholes = {"sd": tiny.sd(folder / "sd"), "sdxl": tiny.sdxl(folder / "sdxl")}
    flux = tiny.flux(folder / "flux", dtype=torch.float32)
    flux_files = ModelConfig(pretrained_model_name_or_path=str(flux.transformer))
    options = FluxOptions(clip_l=str(flux.clip_l), t5xxl=str(flux.t5xxl), ae=str(flux.ae))
    families = {
        name: (
            [name, *whole.arguments],
            family_for(Run("", name, [ModelConfig(pretrained_model_name_or_path=str(whole.path))])),
        )
        for name, whole in wholes.items()
    }
    family = family_for(Run("", "flux", [flux_files, options]))
    return {
        **families,
        "flux": (["flux", *flux.generation_arguments], family),
    }


@pytest.fixture(scope="module")
def bare(
    models: dict[str, tuple[list[str], Family]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """Return each family's image without an adapter."""
    return {name: draw(words, tmp_path_factory.mktemp(name)) for name, (words, _) in models.items()}


def learned(name: str, family: Family, path: Path) -> Path:
    """Write an adapter file with numbers as training would leave them, large enough to be seen."""
    kind, module, rank, alpha, arguments = KINDS[name]
    config = NetworkConfig(
        network_module=module, network_dim=rank, network_alpha=alpha, network_args=arguments or None
    )
    plan = network_modules.resolve(Run("", kind, [config]))
    meta = torch.device("meta")
    network = plan.build(
        family, {part: family.load(part, torch.float32, meta) for part in plan.parts(family)}
    )
    assert isinstance(network, AdapterNetwork)
    rng = torch.Generator().manual_seed(1)
    state = network.state_dict()
    for key, value in state.items():
        if not key.endswith(".alpha"):
            std = 0.5 if ".hada_" in key else 0.2  # two products in one make small numbers smaller
            state[key] = torch.randn(value.shape, generator=rng) * std
    network.load_state_dict(state)
    network.save(path, None, {})
    return path


def draw(words: list[str], folder: Path, *options: str) -> np.ndarray:
    assert main(["generate", *words, *shlex.split(COMMON), "--output_dir", str(folder), *options]) == 0
    with Image.open(next(folder.glob("*.png"))) as image:
        return np.asarray(image).astype(int)


def merged_files(name: str, words: list[str], adapter: Path) -> list[str]:
    """Merge an adapter into the files that `words` name; return the words with the new files' names."""
    if name == "flux":
        tool, options = "flux_merge_lora", ("flux_model", "clip_l", "t5xxl")
        given = [words[words.index(f"--{option}") + 1] for option in ("ckpt_path", *options[1:])]
        outputs = ("save_to", "clip_l_save_to", "t5xxl_save_to")
    else:
        tool, options, outputs = MERGING[name], ("sd_model",), ("save_to",)
        given = [words[words.index("--pretrained_model_name_or_path") + 1]]
    made = [str(Path(path).with_stem(f"{Path(path).stem}-merged")) for path in given]  # beside tokenizers
    argv = ["--models", str(adapter), "--ratios", "0.8"]
    for option, path, output, new in zip(options, given, outputs, made, strict=True):
        argv += [f"--{option}", path, f"--{output}", new]
    assert script(f"networks/{tool}", argv) == 0
    renamed = dict(zip(given, made, strict=True))
    return [renamed.get(word, word) for word in words]


@pytest.mark.parametrize("name", others_slow(KINDS, OFTEN))
def test_live_and_merged_draw_the_same_image(
    name: str,
    models: dict[str, tuple[list[str], Family]],
    bare: dict[str, np.ndarray],
    tmp_path: Path,
) -> None:
    kind = KINDS[name][0]
    words, family = models[kind]
    path = learned(name, family, tmp_path / "x.safetensors")
    adapter = ("--lora_weights", f"{path};0.8")
    live = draw(words, tmp_path / "live", *adapter)
    merged = draw(words, tmp_path / "merged", *adapter, "--merge_lora_weights")
    from_files = draw(merged_files(kind, words, path), tmp_path / "files")
    assert np.abs(live - merged).max() <= 1
    assert np.abs(live - from_files).max() <= 1
    assert np.abs(live - bare[kind]).mean() > 0.2
