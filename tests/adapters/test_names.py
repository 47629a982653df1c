"""Ranks and learning rates by the names of layers: `network_reg_dims`, `network_reg_lrs`."""

from __future__ import annotations

import pytest

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from tests.adapters import toy


def build(*network_args: str) -> AdapterNetwork:
    config = NetworkConfig(network_dim=4, network_alpha=2.0, network_args=network_args)
    network = network_modules.resolve(Run("", "flux", [config])).build(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]
    assert isinstance(network, AdapterNetwork)
    return network


def ranks(network: AdapterNetwork) -> dict[str, int]:
    return {layer.name: layer.rank for layer in network.layers if isinstance(layer, Lora)}


def test_the_first_pattern_found_in_a_name_gives_the_rank_before_kinds_and_blocks() -> None:
    found = ranks(
        build(
            r"network_reg_dims=double_1_.*=8,qkv$=2,single_0=0",
            "train_double_block_indices=0",
            "img_mlp_dim=6",
        )
    )
    expected = {"te1_fc": 4, "unet_double_0_qkv": 2, "unet_double_0_out": 6}
    expected |= {"unet_double_1_qkv": 8, "unet_double_1_out": 8, "unet_single_0_qkv": 2}
    expected |= {f"unet_single_{i}_{name}": rank for i in (1, 2) for name, rank in (("qkv", 2), ("out", 4))}
    assert found == {f"lora_{name}": rank for name, rank in expected.items()}


def test_layers_that_must_be_asked_for_are_not_called_up_by_a_pattern() -> None:
    assert "lora_unet_img_in" not in ranks(build("network_reg_dims=.*=2"))
    assert ranks(build("network_reg_dims=img_in=2", "in_dims=4,0,0,0,0"))["lora_unet_img_in"] == 2


def test_layers_learn_at_the_rate_of_the_first_pattern() -> None:
    network = build("network_reg_lrs=double=3e-4,out=5e-5,te1=0", "loraplus_unet_lr_ratio=4")
    groups = {
        g.name: (g.learning_rate, len(g.parameters)) for g in network.parameter_groups(1e-3, 1e-4, [2e-4])
    }
    assert groups == {
        "unet reg_lr_0": (3e-4, 4),
        "unet reg_lr_0 plus": (pytest.approx(12e-4), 4),
        "unet reg_lr_1": (5e-5, 3),
        "unet reg_lr_1 plus": (pytest.approx(2e-4), 3),
        "unet": (1e-4, 3),
        "unet plus": (pytest.approx(4e-4), 3),
    }


@pytest.mark.parametrize("key", ["network_reg_dims=quadruple=4", "network_reg_lrs=quadruple=1e-4"])
def test_a_pattern_that_fits_nothing_is_one_line(key: str) -> None:
    with pytest.raises(UserError, match="quadruple fits no layer; names look like lora_"):
        build(key)
