"""`networks.lora` on U-Nets: what its arguments mean together, and what other programs get of it."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.registry.families import family_for
from tests.golden.unet_models import SD, SDXL
from tests.models.components.stable_diffusion.published import DTYPES, Published, rows, shape

TWENTY_FIVE = ",".join(["2"] * 12 + ["0"] + ["3"] * 12)


@pytest.fixture(scope="module")
def models() -> dict[str, dict[str, nn.Module]]:
    return {recorded.family: recorded.models() for recorded in (SD, SDXL)}


def build(family: str, models: Mapping[str, nn.Module], *network_args: str, **options: Any) -> AdapterNetwork:
    options = {"network_module": "networks.lora", "network_dim": 4, "network_alpha": 1.0} | options
    config = NetworkConfig(network_args=network_args or None, **options)
    made = network_modules.resolve(Run("", family, [config])).build(family_for(Run("", family, ())), models)
    assert isinstance(made, AdapterNetwork)
    return made


def ranks_by_block(made: AdapterNetwork, is_wide: bool) -> dict[int, int]:
    return {
        layer.target.block[1]: layer.rank
        for layer in made.layers
        if isinstance(layer, Lora) and layer.target.part == DENOISER and layer.target.block
        if (layer.target.kind == "conv3x3") == is_wide
    }


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("lora_sd15_lierla", "sd15_ldm"),
        ("lora_sd15_c3lier", "sd15_ldm"),
        ("lora_sd21_lierla_diffusers_dir_source", "sd21_768_ldm"),
        ("lora_sdxl_lierla", "sdxl_base_sgm"),
        ("lora_sdxl_c3lier", "sdxl_base_sgm"),
    ],
)
def test_files_have_the_names_shapes_and_dtypes_of_sd_scripts(file: str, source: str) -> None:
    published = Published(source)
    arguments = ("conv_dim=4",) if file.endswith("c3lier") else ()
    family = "sdxl" if "sdxl" in file else "sd"
    state = build(family, published.models(), *arguments).state_dict()
    found = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in state.items()}
    assert found == {key: (DTYPES[dtype], shape(size)) for key, dtype, size in rows(file)}


def test_wide_kernels_can_have_ranks_by_block_alone(models: dict[str, dict[str, nn.Module]]) -> None:
    made = build("sd", models["sd"], f"conv_block_dims={TWENTY_FIVE}", "conv_alpha=2")
    wide, others = ranks_by_block(made, is_wide=True), ranks_by_block(made, is_wide=False)
    assert (wide[1], wide[24], 12 in wide) == (2, 3, False)
    assert set(others.values()) == {4}
    alphas = {layer.alpha.item() for layer in made.layers if layer.target.kind == "conv3x3"}  # type: ignore[attr-defined]
    assert alphas == {2.0}


def test_both_text_encoders_learn_at_the_first_rate(
    models: dict[str, dict[str, nn.Module]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = build("sdxl", models["sdxl"], text_encoder_lr=[1e-5, 2e-5])
    assert "uses the first rate for all text encoders" in caplog.text
    groups = made.parameter_groups(1e-3, 0, [1e-5, 2e-5])
    assert [(group.name, group.learning_rate, len(group.parameters)) for group in groups] == [
        ("textencoder", 1e-5, 48)
    ]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("dropout=0.1", "dropout has no effect"),
        ("conv_alpha=2", "conv_alpha has no effect without conv_dim"),
        (f"block_alphas={TWENTY_FIVE}", "block_alphas has no effect without block_dims"),
        ("block_lr_zero_threshold=0.1", "no effect without down_lr_weight"),
        ("down_lr_weight=1,0.5", "has 2 numbers for 12 blocks; further blocks learn at rate 1"),
        ("mid_lr_weight=1,0.5", "has 2 numbers for 1 blocks; the rest is left out"),
    ],
)
def test_what_has_no_effect_is_said(
    argument: str, said: str, models: dict[str, dict[str, nn.Module]], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        build("sd", models["sd"], argument)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("block_dims=1,2,3", "block_dims has 3 numbers for this model's 25 blocks; give one for each"),
        ("block_dims=1,two", "give 25 numbers"),
        ("down_lr_weight=sinus", "give 12 numbers, or one of sine, cosine"),
        ("down_lr_weight=sine+x", "give 12 numbers, or one of sine, cosine"),
        ("up_lr_weight=1,-1", "give 12 numbers"),
        ("conv_dim=-1", "give a rank"),
        ("split_qkv=True", "is unknown"),
        ("img_attn_dim=4", "is unknown"),
    ],
)
def test_a_wrong_argument_is_one_line(
    argument: str, said: str, models: dict[str, dict[str, nn.Module]]
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        build("sd", models["sd"], argument)
    assert "\n" not in str(caught.value)


def test_loha_follows_blocks_and_kernels_too(models: dict[str, dict[str, nn.Module]]) -> None:
    made = build(
        "sdxl",
        models["sdxl"],
        "conv_dim=2",
        "use_tucker=True",
        "down_lr_weight=zeros",
        "mid_lr_weight=0.5",
        network_module="networks.loha",
        network_train_unet_only=True,
    )
    cores = [layer for layer in made.layers if isinstance(layer, Loha) and "hada_t1" in layer.state_dict()]
    assert {layer.rank for layer in cores} == {2}
    blocks = {layer.target.block[1] for layer in made.layers if layer.target.block}
    assert blocks == set(range(10, 22))
    names = [group.name for group in made.parameter_groups(1e-3, 1e-4, None)]
    assert names == list(dict.fromkeys(names))
    assert "unet_block10" in names


def test_programs_that_import_the_module_get_the_model_they_gave(
    models: dict[str, dict[str, nn.Module]], tmp_path: Path
) -> None:
    module = network_modules.PluginModule("networks.lora")
    sd, sdxl = models["sd"], models["sdxl"]
    encoders = [sdxl["text_encoder1"], sdxl["text_encoder2"]]
    network = module.create_network(1.0, 4, 1, None, encoders, sdxl[DENOISER], conv_dim="2")
    assert (len(network.unet_loras), len(network.text_encoder_loras)) == (788, 24)
    _, names = network.prepare_optimizer_params([1e-5, 1e-5], 1e-4, 1e-3)
    assert names == ["textencoder", "unet"]
    small = module.create_network(1.0, 4, 1, None, sd["text_encoder"], sd[DENOISER])
    assert (len(small.unet_loras), len(small.text_encoder_loras)) == (192, 12)
    path = tmp_path / "x.safetensors"
    network.save_weights(str(path), torch.float16, None)
    again, weights = module.create_network_from_weights(1.0, str(path), None, encoders, sdxl[DENOISER])
    assert (len(again.unet_loras), len(weights)) == (788, 3 * 812)
