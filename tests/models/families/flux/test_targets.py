"""Adapter targets of full-size models carry the names that adapter files have."""

import gzip
from pathlib import Path

import pytest
import torch
from torch import nn

from sfumato.models.components import text_encoders
from sfumato.models.components.dit.targets import t5_targets
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.families.flux.targets import denoiser_targets
from sfumato.models.interface.targets import AdapterTarget

HERE = Path(__file__).parent / "names"


def published(name: str) -> list[list[str]]:
    return [
        line.split("\t")
        for line in gzip.decompress((HERE / f"{name}.tsv.gz").read_bytes()).decode().splitlines()
    ]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(int(side) for side in shape.split("x")) for key, _, shape in published(name)}


@pytest.fixture(scope="module")
def targets() -> dict[str, list[AdapterTarget]]:
    bare = {key.removeprefix("text_model."): value for key, value in shapes("clip_l").items()}
    with torch.device("meta"):
        dev, schnell = Flux(FluxShape()), Flux(FluxShape(guidance=False))
    return {
        "dev": list(denoiser_targets(dev)),
        "schnell": list(denoiser_targets(schnell)),
        "clip": list(clip.targets(text_encoders.build_clip(bare, "quick_gelu", None), "clip_l", "te1")),
        "t5": list(t5_targets(text_encoders.build_t5(shapes("t5xxl")), "t5xxl", "te3")),
    }


@pytest.mark.parametrize(
    ("file", "parts", "with_embedders"),
    [
        ("lora_flux", ("clip", "dev"), False),
        ("lora_flux_unet_only", ("dev",), False),
        ("lora_flux_t5", ("clip", "t5", "dev"), False),
        ("lora_flux_all_dims_in_dims", ("clip", "dev"), True),
        ("lora_flux_schnell_in_dims", ("schnell",), True),
    ],
)
def test_names_and_widths_equal_those_of_a_file(
    targets: dict[str, list[AdapterTarget]], file: str, parts: tuple[str, ...], with_embedders: bool
) -> None:
    chosen = [t for part in parts for t in targets[part] if t.is_default or with_embedders]
    widths = {}
    for target in chosen:
        assert isinstance(target.module, nn.Linear)
        widths[f"lora_{target.name}.lora_down.weight"] = target.module.in_features
        widths[f"lora_{target.name}.lora_up.weight"] = target.module.out_features
    assert len(widths) == 2 * len(chosen)
    expected = {}
    for key, _, shape in published(file):
        if not key.endswith(".alpha"):
            expected[key] = int(shape.split("x")[key.endswith("down.weight")])
    assert widths == expected


def test_files_list_a_block_in_the_order_of_its_modules(targets: dict[str, list[AdapterTarget]]) -> None:
    first = [target.name for target in targets["dev"] if target.block == ("double", 0)]
    assert first == [
        f"unet_double_blocks_0_{side}_{layer}"
        for side in ("img", "txt")
        for layer in ("mod_lin", "attn_qkv", "attn_proj", "mlp_0", "mlp_2")
    ]
    assert [t.name for t in targets["dev"] if t.block == ("single", 37)] == [
        f"unet_single_blocks_37_{layer}" for layer in ("linear1", "linear2", "modulation_lin")
    ]
    embedders = [target.name for target in targets["dev"] if not target.is_default]
    assert embedders[0] == "unet_img_in"
    assert embedders[-1] == "unet_txt_in"
    layers = [f"self_attn_{name}_proj" for name in ("k", "v", "q", "out")] + ["mlp_fc1", "mlp_fc2"]
    expected = [f"te1_text_model_encoder_layers_0_{layer}" for layer in layers]
    assert [target.name for target in targets["clip"][:6]] == expected


def test_kinds_and_fused_widths_tell_layers_apart(targets: dict[str, list[AdapterTarget]]) -> None:
    by_name = {target.name: target for target in targets["dev"]}
    kinds = {target.kind for target in targets["dev"]}
    assert kinds == {
        "img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "single", "single_mod",
        "img_in", "time_in", "vector_in", "guidance_in", "txt_in",
    }  # fmt: skip
    assert by_name["unet_double_blocks_3_txt_attn_qkv"].splits == (3072, 3072, 3072)
    assert by_name["unet_single_blocks_3_linear1"].splits == (3072, 3072, 3072, 12288)
    fused = [target for target in targets["dev"] if target.splits]
    assert len(fused) == 2 * 19 + 38
    assert all(sum(t.splits) == t.module.out_features for t in fused if isinstance(t.module, nn.Linear))
