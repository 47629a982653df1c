"""Adapters of full-size models have the tensors, formats and shapes of the files that sd-scripts writes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import AdapterPlan
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.models.components import text_encoders
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.families.sd3.network import MMDiT, MMDiTShape
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from tests.models.components.stable_diffusion.published import Published

NAMES = Path(__file__).parents[1] / "models"
FOLDERS = {"sd3": "families/sd3", "clip_g": "families/sd3", "sd": "components/stable_diffusion"}
"""Where names lie by what they hold; FLUX.1's and those of shared encoders lie with it."""
DTYPES = {"F32": torch.float32, "I64": torch.int64}
ALL_DIMS = "img_attn_dim=2 txt_attn_dim=3 img_mlp_dim=5 txt_mlp_dim=6 img_mod_dim=7 txt_mod_dim=8"
ALL_DIMS += " single_dim=9 single_mod_dim=10 in_dims=4,2,2,2,4"
NONE = "txt_attn_dim=0 img_mlp_dim=0 txt_mlp_dim=0 img_mod_dim=0 txt_mod_dim=0 single_mod_dim=0"
FLUX = {
    "lora_flux": ("", 1128),
    "lora_flux_t5": ("train_t5xxl=True", 1632),
    "lora_flux_split_qkv": ("split_qkv=True", 1128),
    "lora_flux_all_dims_in_dims": (ALL_DIMS, 1152),
    "lora_flux_all_dims_split_qkv": (f"{ALL_DIMS} split_qkv=True", 1152),
    "lora_flux_zero_dims": (f"img_attn_dim=4 single_dim=4 {NONE}", 558),
    "lora_flux_block_indices": (
        "train_double_block_indices=0,1,8-12 train_single_block_indices=3,10",
        444,
    ),
    "lora_flux_unet_only": ("", 912),
    "lora_flux_train_blocks_double": ("train_blocks=double", 570),
    "lora_flux_train_blocks_single": ("train_blocks=single", 342),
    "lora_flux_schnell_in_dims": ("in_dims=4,2,2,2,4", 930),
}
"""Arguments and number of tensors of each file."""
SD3_DIMS = "context_attn_dim=2 context_mlp_dim=3 context_mod_dim=5 x_attn_dim=6 x_mlp_dim=7 x_mod_dim=8"
SD3 = {
    "lora_sd3_medium": ("", 1503),
    "lora_sd3_medium_t5": ("train_t5xxl=True", 2007),
    "lora_sd3_medium_split_qkv": ("split_qkv=True", 1503),
    "lora_sd3_medium_all_dims_emb_dims": (f"{SD3_DIMS} emb_dims=4,2,3,5,6,7", 1527),
    "lora_sd3_medium_block_indices": ("train_block_indices=0,1,8-12", 1002),
    "lora_sd35_medium": ("", 1581),
    "lora_sd35_large": ("", 1923),
}
WITHOUT_TEXT = ("unet_only", "train_blocks", "schnell")
UNETS = [
    ("sd", "networks.lora_fa", "", "lora_sd15_lierla", 792),
    ("sd", "networks.lora_fa", "conv_dim=4", "lora_sd15_c3lier", 1050),
    ("sdxl", "networks.lora_fa", "", "lora_sdxl_lierla", 2958),
    ("sd", "networks.dylora", "unit=4", "lora_sd15_lierla", 792),
    ("sd", "networks.dylora", "unit=1 conv_dim=4", "lora_sd15_c3lier", 1050),
    ("sdxl", "networks.dylora", "", "lora_sdxl_lierla", 2958),
]
TURNS = [
    ("flux", "networks.oft_flux", "", "oft_flux", 228),
    ("flux", "networks.oft_flux", "enable_all_linear=True", "oft_flux_all_linear", 798),
    ("sd", "networks.oft", "enable_all_linear=False", "oft_sd15", 256),
    ("sd", "networks.oft", "enable_all_linear=True", "oft_sd15_all_linear", 384),
    ("sd", "networks.oft", "enable_conv=True", "oft_sd15_conv", 428),
    ("sd", "networks.oft", "enable_all_linear=True enable_conv=True", "oft_sd15_all_linear_conv", 556),
    ("sdxl", "networks.oft", "", "oft_sdxl", 1120),
    ("sdxl", "networks.oft", "enable_all_linear=True", "oft_sdxl_all_linear", 1444),
    ("sdxl", "networks.oft", "enable_all_linear=True enable_conv=True", "oft_sdxl_all_linear_conv", 1576),
]


def listed(name: str) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return format and shape of each tensor of a file."""
    folder = NAMES / next((place for part, place in FOLDERS.items() if part in name), "families/flux")
    text = gzip.decompress((folder / "names" / f"{name}.tsv.gz").read_bytes()).decode()
    rows = (line.split("\t") for line in text.splitlines())
    return {
        key: (DTYPES.get(kind, torch.float32), () if size == "scalar" else tuple(map(int, size.split("x"))))
        for key, kind, size in rows
    }


@pytest.fixture(scope="module")
def families() -> dict[str, tuple[Any, dict[str, nn.Module]]]:
    clip_l, clip_g, t5 = (
        {key.removeprefix("text_model."): size for key, (_, size) in listed(name).items()}
        for name in ("clip_l", "clip_g", "t5xxl")
    )
    texts = {
        "clip_l": text_encoders.build_clip(clip_l, "quick_gelu", None),
        "t5xxl": text_encoders.build_t5(t5),
    }
    all_texts = {**texts, "clip_g": text_encoders.build_clip(clip_g, "gelu", None, True)}
    dual = frozenset(range(13))
    with torch.device("meta"):
        medium = MMDiT(MMDiTShape())
        medium_5 = MMDiT(MMDiTShape(side=384, has_qk_norm=True, dual_blocks=dual))
        large = MMDiT(MMDiTShape(2432, 38, 38, mlp_hidden=9728, has_qk_norm=True))
        dev, schnell = Flux(FluxShape()), Flux(FluxShape(guidance=False))
    return {
        "flux": (FluxFamily(None), {**texts, DENOISER: dev}),
        "schnell": (FluxFamily(None), {DENOISER: schnell}),
        "sd3_medium": (Sd3Family({}), {**all_texts, DENOISER: medium}),
        "sd35_medium": (Sd3Family({}), {**all_texts, DENOISER: medium_5}),
        "sd35_large": (Sd3Family({}), {**all_texts, DENOISER: large}),
        "sd": (SdFamily(None), Published("sd15_ldm").models()),
        "sdxl": (SdxlFamily(None), Published("sdxl_base_sgm").models()),
    }


def plan_for(family: str, module: str, arguments: str, **options: Any) -> AdapterPlan:
    config = NetworkConfig(network_module=module, network_args=tuple(arguments.split()), **options)
    plan = network_modules.resolve(Run("", family, [config]))
    assert isinstance(plan, AdapterPlan)
    return plan


def assert_same_file(network: Any, file: str, count: int) -> None:
    assert isinstance(network, AdapterNetwork)
    found = {key: (value.dtype, tuple(value.shape)) for key, value in network.state_dict().items()}
    assert found == listed(file)
    assert len(found) == count


@pytest.fixture
def _no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not draw tens of millions of numbers that nobody looks at."""
    monkeypatch.setattr(nn.init, "kaiming_uniform_", lambda tensor, **_: tensor)


@pytest.mark.parametrize("file", SD3)
@pytest.mark.usefixtures("_no_numbers")
def test_sd3_loras_hold_what_files_hold(file: str, families: Any) -> None:
    arguments, count = SD3[file]
    plan = plan_for("sd3", "networks.lora_sd3", arguments, network_alpha=1.0)
    name = next(name for name in families if name.startswith("sd3") and name in file)
    assert_same_file(plan.build(*families[name]), file, count)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sd3_medium_mmdit", "sd3_medium"),
        ("sd35_medium_mmdit", "sd35_medium"),
        ("sd35_large_mmdit", "sd35_large"),
    ],
)
def test_transformers_of_sd3_hold_what_files_hold(file: str, name: str, families: Any) -> None:
    state = families[name][1][DENOISER].state_dict()
    found = {key: tuple(value.shape) for key, value in state.items()}
    assert found == {key: size for key, (_, size) in listed(f"{name}_mmdit").items()}
    shape = families[name][1][DENOISER].shape
    assert MMDiTShape.of(found) == shape
    assert shape.variant == {"sd3_medium": "medium", "sd35_medium": "5-medium"}.get(name, "5-large")


@pytest.mark.parametrize("file", FLUX)
@pytest.mark.usefixtures("_no_numbers")
def test_flux_loras_hold_what_files_hold(file: str, families: Any) -> None:
    arguments, count = FLUX[file]
    is_bare = any(word in file for word in WITHOUT_TEXT)
    plan = plan_for(
        "flux", "networks.lora_flux", arguments, network_alpha=1.0, network_train_unet_only=is_bare
    )
    assert_same_file(plan.build(*families["schnell" if "schnell" in file else "flux"]), file, count)


@pytest.mark.parametrize(("family", "module", "arguments", "file", "count"), UNETS)
@pytest.mark.usefixtures("_no_numbers")
def test_other_loras_hold_what_files_hold(
    family: str, module: str, arguments: str, file: str, count: int, families: Any
) -> None:
    plan = plan_for(family, module, arguments, network_dim=4, network_alpha=1.0)
    assert_same_file(plan.build(*families[family]), file, count)


@pytest.mark.parametrize(("family", "module", "arguments", "file", "count"), TURNS)
def test_oft_turns_what_files_turn(
    family: str, module: str, arguments: str, file: str, count: int, families: Any
) -> None:
    """Some of these files have gigabytes, so that no layer is made."""
    owner, models = families[family]
    plan = plan_for(family, module, arguments, network_dim=4, network_alpha=1e-3)
    assert plan.parts(owner) == [DENOISER]
    expected: dict[str, tuple[int, ...]] = {}
    for target in owner.adapter_targets(DENOISER, models[DENOISER]):
        if size := plan.rule.size_of(target):
            widths = target.splits or (target.module.weight.shape[0],)
            sizes = [(size.rank, width // size.rank, width // size.rank) for width in widths]
            names = [f".{number}" for number in range(len(sizes))] if family == "flux" else [""]
            own = {f"oft_blocks{name}": shape for name, shape in zip(names, sizes, strict=True)}
            expected |= {f"oft_{target.name}.{key}": shape for key, shape in {**own, "alpha": ()}.items()}
    assert expected == {key: size for key, (_, size) in listed(file).items()}
    assert len(expected) == count
