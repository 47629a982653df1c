"""Layers that a file switches off with an alpha of 0 do nothing, learn nothing, and stay switched off."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.files.dialects.splitting import in_diffusers_names
from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lokr import Lokr, shapes_for
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.layers.oft import Oft
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.layer_names import names_of
from tests.adapters import toy

INPUTS = torch.randn(2, 5, toy.WIDTH, generator=torch.Generator().manual_seed(1))
KINDS: dict[str, Callable[[AdapterTarget], AdapterLayer]] = {
    "lora": lambda target: Lora(target, 2, 1.0),
    "split lora": lambda target: Lora(target, 2, 1.0, splits=target.splits),
    "loha": lambda target: Loha(target, 2, 1.0),
    "lokr": lambda target: Lokr(target, shapes_for(target.module, 1, 2), 2.0),
    "lokr, whole": lambda target: Lokr(target, shapes_for(target.module, 1, 2, is_full=True)),
    "oft": lambda target: Oft(target, 2, 0.1),
}
IS_OFF = ("qkv", "te")


def written(path: Path, kind: str, alpha: torch.Tensor | None) -> Path:
    """Write an adapter in which some layers have this alpha, or are left out."""
    network = AdapterNetwork(KINDS[kind](target) for target in toy.all_targets(toy.models()))
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    tensors = {}
    for key, tensor in network.state_dict().items():
        is_off = any(word in key for word in IS_OFF)
        if not (is_off and alpha is None):
            tensors[key] = alpha if is_off and key.endswith(".alpha") and alpha is not None else tensor
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path)
    return path


def made_of(path: Path) -> tuple[AdapterNetwork, dict[str, nn.Module]]:
    models = toy.models()
    return network_from_file(path, toy.all_targets(models)), models


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alpha", [torch.tensor(0.0), torch.tensor(0), torch.zeros(1).half()], ids=str)
def test_a_layer_with_alpha_0_acts_like_one_that_is_not_there(
    kind: str, alpha: torch.Tensor, tmp_path: Path
) -> None:
    results = []
    for file in (
        written(tmp_path / "off.safetensors", kind, alpha),
        written(tmp_path / "without.safetensors", kind, None),
    ):
        (live, models), (merged, others) = made_of(file), made_of(file)
        live.attach()
        merged.merge()
        results.append((models[DENOISER](INPUTS), models["first"](INPUTS), others[DENOISER](INPUTS)))
    for off, without in zip(*results, strict=True):
        assert torch.equal(off, without)
    assert not torch.allclose(results[0][0], toy.models()[DENOISER](INPUTS))


@pytest.mark.parametrize("kind", KINDS)
def test_training_on_leaves_what_is_off_as_it_is(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "off.safetensors", kind, torch.tensor(0.0))
    network, models = made_of(path)
    assert "; 7 of these are switched off by an alpha of 0, and stay so" in network.describe()
    network.attach()
    groups = [group.as_dict() for group in network.parameter_groups(0.1, None, [0.1])]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.5)
    models[DENOISER](INPUTS).square().sum().backward()
    optimizer.step()
    network.save(tmp_path / "on.safetensors", None, {})
    before, after = load_file(path), load_file(tmp_path / "on.safetensors")
    for key, tensor in before.items():
        stays = any(word in key for word in IS_OFF) or key.endswith(".alpha")
        assert torch.equal(tensor, after[key]) == stays, key


def plan(path: Path, **options: object) -> NetworkPlan:
    config = NetworkConfig(network_module="networks.lora_flux", network_weights=str(path), **options)  # type: ignore[arg-type]
    return network_modules.resolve(Run("", "flux", [config]))


@pytest.mark.parametrize("takes_ranks", [True, False])
def test_a_file_that_is_off_altogether_is_not_trained(takes_ranks: bool, tmp_path: Path) -> None:
    tensors = load_file(written(tmp_path / "a.safetensors", "lora", torch.tensor(0.0)))
    dark = {k: torch.tensor(0.0) if k.endswith(".alpha") else t for k, t in tensors.items()}
    save_file({k: t for k, t in dark.items() if "img_in" not in k}, tmp_path / "b.safetensors")
    made = plan(tmp_path / "b.safetensors", dim_from_weights=takes_ranks, network_dim=2)
    with pytest.raises(UserError, match="switches every layer off with an alpha of 0, so that nothing would"):
        made.build(cast(Family, toy.ToyFamily()), toy.models())


def test_an_alpha_of_0_for_a_new_network_means_the_rank() -> None:
    config = NetworkConfig(network_module="networks.lora_flux", network_dim=3, network_alpha=0)
    made = network_modules.resolve(Run("", "flux", [config])).build(
        cast(Family, toy.ToyFamily()), toy.models()
    )
    alphas = {float(tensor) for key, tensor in made.trainable.state_dict().items() if key.endswith("alpha")}
    assert alphas == {3.0}


def test_a_layer_is_off_in_the_naming_of_diffusers_and_back(tmp_path: Path) -> None:
    name, base = "lora_unet_single_blocks_0_linear2", "transformer.single_transformer_blocks.0.proj_out"
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, 20, generator=draw), torch.randn(8, 2, generator=draw)
    names = names_of("flux", [])
    assert names is not None
    halves = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(0)}
    theirs, rest = in_diffusers_names({name: halves}, names)
    assert not rest
    assert torch.equal(theirs[f"{base}.lora_A.weight"], down)
    assert not theirs[f"{base}.lora_B.weight"].any()
    dark = {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up, f"{base}.alpha": torch.zeros(1)}
    save_file(dark, tmp_path / "dark.safetensors")
    own = read_adapter(tmp_path / "dark.safetensors")[name]
    assert own["alpha"].item() == 0
    assert torch.equal(own["lora_up.weight"], up)


def test_one_of_several_fused_layers_may_be_off_alone(tmp_path: Path) -> None:
    base, name = "transformer.transformer_blocks.0.attn", "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {}
    for word in ("to_q", "to_k", "to_v"):
        tensors |= {f"{base}.{word}.lora_A.weight": torch.ones(2, 4)}
        tensors |= {
            f"{base}.{word}.lora_B.weight": torch.ones(4, 2),
            f"{base}.{word}.alpha": torch.tensor(1.0),
        }
    tensors[f"{base}.to_k.alpha"] = torch.tensor(0.0)
    save_file(tensors, tmp_path / "a.safetensors")
    own = read_adapter(tmp_path / "a.safetensors")[name]
    product = own["lora_up.weight"] @ own["lora_down.weight"] * own["alpha"] / len(own["lora_down.weight"])
    assert [part.unique().tolist() for part in product.split(4)] == [[1.0], [0.0], [1.0]]


@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        (torch.tensor(-1.0), -0.5),
        (torch.tensor(3), 1.5),
        (torch.tensor([4.0]), 2.0),
        (torch.tensor([[1.0]]).bfloat16(), 0.5),
        (None, 1.0),
    ],
)
def test_an_alpha_is_any_one_number_or_missing(
    alpha: torch.Tensor | None, scale: float, tmp_path: Path
) -> None:
    halves = {
        "lora_te1_fc.lora_down.weight": torch.ones(2, 8),
        "lora_te1_fc.lora_up.weight": torch.ones(8, 2),
    }
    save_file(halves | ({} if alpha is None else {"lora_te1_fc.alpha": alpha}), tmp_path / "a.safetensors")
    network, _ = made_of(tmp_path / "a.safetensors")
    assert network.layers[0].delta().unique().tolist() == [2 * scale]


BROKEN = {
    "holds values that are no numbers": {"lora_te1_fc.lora_up.weight": torch.full((8, 2), torch.nan)},
    "alpha holds values that are no numbers": {"lora_te1_fc.alpha": torch.tensor(torch.inf)},
    "alpha holds 3 values instead of one": {"lora_te1_fc.alpha": torch.ones(3)},
    "lora_down.weight is empty": {"lora_te1_fc.lora_down.weight": torch.ones(0, 8)},
    "the halves of lora_te1_fc, 2x8 and 8x3, do not fit": {"lora_te1_fc.lora_up.weight": torch.ones(8, 3)},
    "lora_unet_x has lora_down.weight without lora_up.weight": {
        "lora_unet_x.lora_down.weight": torch.ones(2, 8)
    },
    "lora_unet_x has lora_up.weight without lora_down": {"lora_unet_x.lora_up.weight": torch.ones(8, 2)},
    "transformer.x has lora_down.weight without lora_up": {"transformer.x.lora_A.weight": torch.ones(2, 8)},
    "without hada_w1_b": {f"lora_unet_x.hada_w{side}": torch.ones(8, 2) for side in ("1_a", "2_a")},
    "has lokr_w1 without lokr_w2": {"lora_unet_x.lokr_w1": torch.ones(2, 2)},
    "has lokr_w1, lokr_w2_a without lokr_w2_b": {
        f"lora_unet_x.lokr_w{side}": torch.ones(2, 2) for side in ("1", "2_a")
    },
    "limits how far it turns": {
        "oft_te1_fc.oft_blocks": torch.ones(2, 4, 4),
        "oft_te1_fc.alpha": torch.tensor(-1.0),
    },
}


@pytest.mark.parametrize("said", BROKEN)
def test_what_is_not_sound_is_refused_with_the_tensors_name(said: str, tmp_path: Path) -> None:
    good = {
        "lora_te1_fc.lora_down.weight": torch.ones(2, 8),
        "lora_te1_fc.lora_up.weight": torch.ones(8, 2),
        "lora_te1_fc.alpha": torch.tensor(1.0),
    }
    save_file(good | BROKEN[said], tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=said) as caught:
        made_of(tmp_path / "bad.safetensors")
    assert "\n" not in str(caught.value)


def test_a_model_is_called_no_adapter_without_its_numbers_being_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    save_file({"model.weight": torch.tensor(torch.nan)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="give a LoRA, LoHa, LoKr or OFT"):
        read_adapter(tmp_path / "model.safetensors")
