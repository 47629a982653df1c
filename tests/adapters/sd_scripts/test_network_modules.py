"""`--network_module` and `--network_args` as people write them."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import argument_values, network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from tests.adapters import toy

FLUX = "networks.lora_flux"


def resolve(*network_args: str, module: str | None = FLUX, **options: Any) -> NetworkPlan:
    config = NetworkConfig(network_module=module, network_args=network_args or None, **options)
    return network_modules.resolve(Run("flux_train_network", "flux", [config]))


def build(*network_args: str, **options: Any) -> AdapterNetwork:
    made = resolve(*network_args, **options).build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    assert isinstance(made, AdapterNetwork)
    return made


def ranks(made: AdapterNetwork) -> dict[str, int]:
    return {layer.target.name: layer.rank for layer in made.layers if isinstance(layer, Lora)}


def test_the_default_adapts_the_blocks_and_the_first_text_encoder() -> None:
    made = build()
    assert made.describe() == "adapts 10 layers of denoiser, 1 of first"
    assert set(ranks(made).values()) == {4}
    assert made.state_dict()["lora_te1_fc.alpha"].dtype == torch.int64


def test_parts_are_known_before_a_model_is_loaded() -> None:
    family: Any = toy.ToyFamily()
    assert resolve().parts(family) == ["first", DENOISER]
    assert resolve("train_t5xxl=True").parts(family) == ["first", "second", DENOISER]
    assert resolve(network_train_unet_only=True).parts(family) == [DENOISER]
    assert resolve(network_train_text_encoder_only=True).parts(family) == ["first"]


def test_ranks_follow_kinds_blocks_and_named_layers() -> None:
    found = ranks(
        build(
            "img_attn_dim=2",
            "single_mod_dim=0",
            "in_dims=[7,0,0,0,0]",
            "train_double_block_indices=1",
            "train_single_block_indices=0-1",
            network_dim=5,
        )
    )
    assert found == {
        "te1_fc": 5,
        "unet_double_1_qkv": 2,
        "unet_double_1_out": 5,
        "unet_single_0_qkv": 5,
        "unet_single_1_qkv": 5,
        "unet_img_in": 7,
    }


def test_one_kind_of_block_can_be_left_out() -> None:
    assert {name.split("_")[1] for name in ranks(build("train_blocks=single"))} == {"fc", "single"}
    assert {name.split("_")[1] for name in ranks(build("train_single_block_indices=none"))} == {
        "fc",
        "double",
    }


def test_fused_projections_can_be_split() -> None:
    found = ranks(build("split_qkv=True"))
    assert (found["unet_double_0_qkv"], found["unet_double_0_out"]) == (12, 4)


def test_dropouts_and_ratios_reach_the_layers() -> None:
    made = build("rank_dropout=0.1", "module_dropout=0.2", "loraplus_lr_ratio=4", network_dropout=0.3)
    layer = made.layers[0]
    assert isinstance(layer, Lora)
    assert (layer.dropouts.neuron, layer.dropouts.rank, layer.dropouts.module) == (0.3, 0.1, 0.2)
    assert made.rates.plus.text_encoders == made.rates.plus.denoiser == 4


def test_verbose_names_every_layer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        build("verbose=True")
    assert caplog.text.count("rank=4") == 11


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("img_atn_dim=2", "did you mean img_attn_dim"),
        ("img_attn_dim", "write it as key=value"),
        ("img_attn_dim=two", "img_attn_dim=two: give a rank"),
        ("img_attn_dim=-1", "give a rank"),
        ("in_dims=1,2", "give 5 ranks: img_in,"),
        ("train_blocks=triple", "give all, double, single"),
        ("train_double_block_indices=3-1", "give indices such as"),
        ("train_double_block_indices=0-9999999999", r"give indices such as 0-3,7 \(below 1000\)"),
        ("rank_dropout=1.5", "give a probability"),
        ("split_qkv=yes", "give True or False"),
        ("network_reg_dims=(=4", "give pairs of a regular expression and a rank"),
        ("network_reg_lrs=img=fast", "give pairs of a regular expression and a learning rate"),
        ("zzzzz=1", "is unknown; known are"),
    ],
)
def test_a_wrong_argument_is_one_line_before_anything_is_loaded(argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        resolve(argument)
    assert "\n" not in str(caught.value)


def test_an_argument_without_a_value_is_not_given() -> None:
    assert argument_values.split(["preset=", "algo=ia3", "factor = "]) == {"algo": "ia3"}


def test_an_argument_without_effect_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        resolve("conv_dim=4")
    assert "conv_dim has no effect" in caplog.text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"module": "networks.lora_sd3"}, "is for another model; use networks.lora_flux"),
        ({"module": "networks.lora"}, "is for another model; use networks.lora_flux"),
        ({"module": "networks.lora_fluks"}, "did you mean networks.lora_flux"),
        ({"module": "lora_flux"}, "did you mean networks.lora_flux"),
        ({"network_dropout": 1.0}, "leaves out everything; use less"),
        ({"module": "no_such_package.x"}, "cannot be imported"),
        ({"module": "json"}, "has no create_network"),
        ({"dim_from_weights": True}, "give --network_weights"),
        ({"network_train_unet_only": True, "network_train_text_encoder_only": True}, "leave nothing"),
    ],
)
def test_a_wrong_module_or_combination_is_one_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(**options)


def test_blocks_that_the_model_lacks_are_named() -> None:
    with pytest.raises(
        UserError, match=r"train_double_block_indices asks for block 5, but the model has 0 to 1"
    ):
        build("train_double_block_indices=0,5")


def test_arguments_that_leave_nothing_are_refused() -> None:
    with pytest.raises(UserError, match="leave no layer"):
        build(
            "train_double_block_indices=none", "train_single_block_indices=none", network_train_unet_only=True
        )


def test_training_goes_on_from_a_file_with_its_ranks_or_with_given_ones(tmp_path: Path) -> None:
    first = build(network_dim=3, network_alpha=6.0)
    path = tmp_path / "x.safetensors"
    first.save(path, None, {})
    again = build(network_dim=3, network_weights=str(path))
    assert again.state_dict()["lora_te1_fc.alpha"].item() == 6
    as_file = build("rank_dropout=0.5", network_weights=str(path), dim_from_weights=True)
    assert set(ranks(as_file).values()) == {3}
    layer = as_file.layers[0]
    assert isinstance(layer, Lora)
    assert layer.dropouts.rank == 0.5
    assert torch.equal(layer.lora_down.weight, again.state_dict()[f"{layer.name}.lora_down.weight"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("all", None), ("none", set()), ("", set()), ("0-2, 5", {0, 1, 2, 5}), ("3", {3})],
)
def test_block_indices_are_read(text: str, expected: set[int] | None) -> None:
    assert argument_values.to_indices(text) == expected


@pytest.fixture
def flux(monkeypatch: pytest.MonkeyPatch) -> dict[str, nn.Module]:
    monkeypatch.setattr(network_modules, "family_for", lambda run: toy.ToyFamily())
    return toy.models()


def test_programs_that_speak_the_plug_in_interface_get_a_network(
    flux: dict[str, nn.Module], tmp_path: Path
) -> None:
    encoders, denoiser = [flux["first"], flux["second"]], flux[DENOISER]
    inputs = torch.randn(2, toy.WIDTH)
    before = denoiser(inputs)
    network = network_modules.PluginModule(FLUX).create_network(
        1.0, 4, 2.0, None, encoders, denoiser, rank_dropout="0.1"
    )
    network.apply_to(encoders, denoiser, apply_text_encoder=False, apply_unet=True)
    network.prepare_grad_etc(encoders, denoiser)
    network.on_epoch_start(encoders, denoiser)
    groups, names = network.prepare_optimizer_params(1e-5, 1e-4, 1e-3)
    assert names == ["unet"]
    assert sum(len(group["params"]) for group in groups) == len(network.get_trainable_params()) == 20
    assert len(network.text_encoder_loras) == 0
    nn.init.ones_(network.unet_loras[0].lora_up.weight)  # type: ignore[attr-defined]
    network.eval()
    live = denoiser(inputs)
    assert not torch.allclose(live, before)
    network.set_enabled(False)
    assert torch.equal(denoiser(inputs), before)
    network.save_weights(str(tmp_path / "x.safetensors"), None, None)

    other, weights = network_modules.PluginModule(FLUX).create_network_from_weights(
        1.0, str(tmp_path / "x.safetensors"), None, encoders, denoiser, for_inference=True
    )
    assert len(weights) == 30
    assert not other.train_t5xxl
    assert other.is_mergeable()
    other.merge_to(encoders, denoiser, weights)
    torch.testing.assert_close(denoiser(inputs), live, rtol=1e-4, atol=1e-5)
    assert other.apply_max_norm_regularization(0.01, "cpu") == (
        1,
        pytest.approx(0.01 / len(other.unet_loras)),
        pytest.approx(0.01),
    )


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (
            ["train_t5xxl=True"],
            {"network_train_unet_only": True},
            "train_t5xxl has no effect with --network_train",
        ),
        (["train_t5xxl=False"], {"network_train_unet_only": True}, ""),
        (
            ["train_blocks=single", "train_double_block_indices=0"],
            {},
            "train_double_block_indices has no effect with train_blocks=single",
        ),
        (
            ["split_qkv=True"],
            {"dim_from_weights": True, "network_weights": "x.safetensors"},
            "split_qkv has no effect: --dim_from_weights takes it from the file",
        ),
        (["rank_dropout=0.1"], {"dim_from_weights": True, "network_weights": "x.safetensors"}, ""),
    ],
)
def test_an_argument_that_another_overrules_is_a_warning(
    arguments: list[str], options: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        resolve(*arguments, **options)
    assert len(caplog.messages) == bool(said)
    assert said in "".join(caplog.messages)
