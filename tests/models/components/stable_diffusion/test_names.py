"""Names and shapes of full-size models, and of adapters for them, equal those of published files."""

from typing import Any

import pytest
import torch

from sfumato.adapters.sd_scripts.block_helpers import get_block_index
from sfumato.checkpoints.lazy import written_as
from sfumato.models.components import autoencoder, part_prefixes, text_encoders
from sfumato.models.components.stable_diffusion import openclip, single_file
from sfumato.models.components.unet import unet_names
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.publishing import tensors_of
from sfumato.models.interface.targets import AdapterTarget
from tests.models.components.stable_diffusion.published import DTYPES, LAYOUTS, Published, rows, shape, shapes

CHECKPOINTS = list(LAYOUTS)
UNET = "model.diffusion_model."
TABLES = {
    "sd15_ldm": ("sd_unet_ldm_to_diffusers", "sd15_unet_diffusers"),
    "sd21_768_ldm": ("sd_unet_ldm_to_diffusers", "sd21_unet_diffusers"),
    "sdxl_base_sgm": ("sdxl_unet_sgm_to_diffusers", "sdxl_unet_diffusers"),
}


@pytest.fixture(scope="module")
def published() -> dict[str, Published]:
    return {name: Published(name) for name in CHECKPOINTS}


@pytest.fixture(scope="module")
def models(published: dict[str, Published]) -> dict[str, dict[str, Any]]:
    return {name: checkpoint.models() for name, checkpoint in published.items()}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_unet_tensor_is_translated_both_ways(name: str, published: dict[str, Published]) -> None:
    table, diffusers = TABLES[name]
    expected = {theirs: ours for theirs, ours, _ in rows(table)}
    own = {key.removeprefix(UNET): s for key, s in published[name].shapes.items() if key.startswith(UNET)}
    assert unet_names.diffusers_names(own) == expected
    assert unet_names.published_names(expected.values()) == {
        ours: theirs for theirs, ours in expected.items()
    }
    assert {expected[key]: s for key, s in own.items()} == shapes(diffusers)
    assert unet_names.diffusers_names(shapes(diffusers)) == {key: key for key in shapes(diffusers)}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_full_size_unet_has_diffusers_names_and_shapes(name: str, models: dict[str, dict[str, Any]]) -> None:
    state = models[name][DENOISER].state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == shapes(TABLES[name][1])


def test_heads_are_those_of_the_published_models(models: dict[str, dict[str, Any]]) -> None:
    heads = {name: parts[DENOISER].config.attention_head_dim for name, parts in models.items()}
    assert heads == {"sd15_ldm": 8, "sd21_768_ldm": [5, 10, 20, 20], "sdxl_base_sgm": [5, 10, 20]}
    assert models["sdxl_base_sgm"][DENOISER].config.transformer_layers_per_block == [1, 2, 10]


def test_every_autoencoder_tensor_is_translated_both_ways() -> None:
    expected = {theirs: ours for theirs, ours, _ in rows("vae_ldm_to_diffusers")}
    checkpoint = Published("sd15_ldm")
    view = checkpoint.view(part_prefixes.VAE[0])
    assert autoencoder.diffusers_names(view.shapes) == expected
    state = tensors_of(autoencoder.load_view(view, torch.float32, torch.device("meta")))
    again = {name: tensor.shape for name, tensor in autoencoder.published(state).items()}
    assert again == dict(view.shapes)


@pytest.mark.parametrize(
    ("name", "part", "table", "diffusers"),
    [
        ("sd21_768_ldm", "text_encoder", "sd2_openclip_to_hf", "sd21_text_encoder_diffusers"),
        (
            "sdxl_base_sgm",
            "text_encoder2",
            "sdxl_clip_g_openclip_to_hf",
            "sdxl_text_encoder_2_diffusers",
        ),
    ],
)
def test_every_openclip_tensor_is_translated(
    name: str, part: str, table: str, diffusers: str, models: dict[str, dict[str, Any]]
) -> None:
    model = models[name][part]
    layers = len(text_encoders.layers(model))
    ours: dict[str, set[str]] = {theirs: {new} for theirs, new in openclip.plain_names(layers).items()}
    ours |= {theirs: set(new) for theirs, new in openclip.fused_names(layers).items()}
    expected: dict[str, set[str]] = {}
    for theirs, new, _ in rows(table):
        if new not in ("-", "text_projection.weight"):
            expected.setdefault(theirs, set()).add(new.removeprefix("text_model."))
    assert ours == expected
    saved = {
        key: tuple(value.shape) for key, value in text_encoders.published_clip(tensors_of(model)).items()
    }
    assert saved == shapes(diffusers)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_saved_checkpoint_has_the_published_names_shapes_and_dtypes(
    name: str, published: dict[str, Published], models: dict[str, dict[str, Any]]
) -> None:
    listed = rows(name)
    dtype = DTYPES[listed[-1][1]]
    parts = {part: tensors_of(model) for part, model in models[name].items()}
    tensors = single_file.file_tensors(published[name], parts, base=None)
    found = {key: (written_as(value, dtype), value.shape) for key, value in tensors.items()}
    assert found == {key: (DTYPES[kind], shape(size)) for key, kind, size in listed}


def targets_of(name: str, models: dict[str, Any]) -> list[AdapterTarget]:
    family = SdxlFamily(None) if name == "sdxl" else SdFamily(None)
    return [
        t for part in (*family.text_outputs, DENOISER) for t in family.adapter_targets(part, models[part])
    ]


FILES = {"sd15": "sd15_ldm", "sd21": "sd21_768_ldm", "sdxl": "sdxl_base_sgm"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["lierla", "c3lier"])
def test_adapters_have_the_names_and_widths_of_files(
    name: str, kind: str, models: dict[str, dict[str, Any]]
) -> None:
    chosen = [t for t in targets_of(name, models[FILES[name]]) if t.is_default or kind == "c3lier"]
    found: dict[str, tuple[int, ...]] = {}
    for target in chosen:
        weight = target.module.weight
        window = tuple(weight.shape[2:])
        found[f"lora_{target.name}.lora_down.weight"] = (4, weight.shape[1], *window)
        found[f"lora_{target.name}.lora_up.weight"] = (weight.shape[0], 4, *(1 for _ in window))
        found[f"lora_{target.name}.alpha"] = ()
    file = (
        "lora_sd21_lierla_diffusers_dir_source"
        if (name, kind) == ("sd21", "lierla")
        else f"lora_{name}_{kind}"
    )
    expected = shapes(file)
    assert found.keys() == expected.keys() == shapes(f"lora_{name}_{kind}").keys()
    # sd-scripts takes the projections of version 2 for convolutions when it reads them from a single file.
    squeezed = {key: [n for n in size if n > 1] for key, size in expected.items()}
    assert {key: [n for n in size if n > 1] for key, size in found.items()} == squeezed
    if (name, kind) != ("sd21", "c3lier"):
        assert found == expected


@pytest.mark.parametrize("name", FILES)
def test_layers_know_the_block_that_options_count(name: str, models: dict[str, dict[str, Any]]) -> None:
    listed = {row[1]: row[-1] for row in rows("lbw_lora_module_to_block") if row[0] == name}
    targets = [t for t in targets_of(name, models[FILES[name]]) if t.part == DENOISER]
    numbers = {f"lora_{t.name}": str(t.block[1]) for t in targets if t.block}
    assert numbers == {module: number for module, number in listed.items() if number != "-"}
    assert {t.block[0] for t in targets if t.block} == {"down", "mid", "up"}


@pytest.mark.parametrize("name", FILES)
def test_other_programs_are_told_the_block_of_a_layer(name: str) -> None:
    listed = {row[1]: row[-1] for row in rows("lbw_lora_module_to_block") if row[0] == name}
    found = {module: get_block_index(module, name == "sdxl") for module in listed}
    assert found == {module: -1 if number == "-" else int(number) for module, number in listed.items()}


def test_kinds_tell_linear_layers_from_convolutions(models: dict[str, dict[str, Any]]) -> None:
    targets = {t.name: t for t in targets_of("sd15", models["sd15_ldm"])}
    assert targets["unet_down_blocks_0_attentions_0_proj_in"].kind == "conv1x1"
    assert targets["unet_down_blocks_0_resnets_0_conv1"].kind == "conv3x3"
    assert targets["unet_down_blocks_0_resnets_0_time_emb_proj"].kind == "linear"
    assert not targets["unet_down_blocks_0_resnets_0_time_emb_proj"].is_default
    assert targets["unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"].is_default


def test_class_names_that_other_adapters_select_by_are_kept(models: dict[str, dict[str, Any]]) -> None:
    for parts in models.values():
        names = {type(module).__name__ for module in parts[DENOISER].modules()}
        assert {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"} <= names
        for part in parts.keys() - {DENOISER, "vae"}:
            assert {"CLIPAttention", "CLIPMLP"} <= {type(module).__name__ for module in parts[part].modules()}
