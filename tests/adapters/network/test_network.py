"""All adapters of a run as a whole: acting, leaving, merging, saving and loading."""

import logging
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.rates import PlusRatios, Rates
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from tests.adapters import toy

INPUTS = torch.randn(2, 5, toy.WIDTH, generator=torch.Generator().manual_seed(1))


def network(models: dict[str, nn.Module], rank: int = 2, alpha: float = 1.0, **options) -> AdapterNetwork:
    targets = toy.all_targets(models)
    return AdapterNetwork.from_targets(
        targets,
        lambda target: Lora(target, rank, alpha) if target.is_default else None,
        ["first", "second"],
        **options,
    )


def trained(made: AdapterNetwork) -> AdapterNetwork:
    generator = torch.Generator().manual_seed(2)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made


def test_untrained_network_leaves_the_model_unchanged() -> None:
    models = toy.models()
    before = models[DENOISER](INPUTS)
    network(models).attach()
    assert torch.equal(models[DENOISER](INPUTS), before)


def test_attaching_and_detaching_twice_changes_nothing() -> None:
    models = toy.models()
    before = models[DENOISER](INPUTS)
    made = trained(network(models))
    made.attach()
    once = models[DENOISER](INPUTS)
    made.attach()
    assert torch.equal(models[DENOISER](INPUTS), once)
    assert not torch.allclose(once, before)
    made.detach()
    made.detach()
    assert torch.equal(models[DENOISER](INPUTS), before)


def test_two_networks_share_a_model_and_leave_in_any_order() -> None:
    models = toy.models()
    first, second = trained(network(models)), trained(network(models, rank=3))
    first.attach()
    alone = models[DENOISER](INPUTS)
    second.attach()
    assert not torch.allclose(models[DENOISER](INPUTS), alone)
    first.detach()
    second.detach()
    second.attach()
    first.attach()
    second.detach()
    assert torch.equal(models[DENOISER](INPUTS), alone)


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.5])
def test_live_and_merged_models_agree(strength: float) -> None:
    models = toy.models()
    made = trained(network(models))
    made.set_strength(strength)
    made.attach()
    live = models[DENOISER](INPUTS)
    made.merge()
    assert not made.is_attached
    torch.testing.assert_close(models[DENOISER](INPUTS), live, rtol=1e-4, atol=1e-5)


def test_only_the_adapter_learns() -> None:
    models = toy.models()
    for model in models.values():
        model.requires_grad_(False)
    made = network(models)
    made.attach()
    models[DENOISER](INPUTS).square().sum().backward()
    grads = [layer.lora_up.weight.grad for layer in made.layers if isinstance(layer, Lora)]
    assert all(grad is not None and grad.any() for grad in grads[2:])
    assert all(parameter.grad is None for model in models.values() for parameter in model.parameters())


def test_names_in_the_state_are_the_keys_of_the_file(tmp_path: Path) -> None:
    made = trained(network(toy.models()))
    made.save(tmp_path / "x.safetensors", None, {})
    tensors = load_file(tmp_path / "x.safetensors")
    assert set(tensors) == set(made.state_dict())
    assert "lora_unet_double_0_qkv.lora_down.weight" in tensors
    assert tensors["lora_te1_fc.alpha"].dtype == torch.float32


def test_saving_and_loading_gives_back_every_value(tmp_path: Path) -> None:
    made = trained(network(toy.models()))
    made.save(tmp_path / "x.safetensors", None, {})
    other = network(toy.models(), alpha=7)
    assert other.load(tmp_path / "x.safetensors").endswith("12 of 12 layers loaded")
    for key, value in made.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def test_a_fractional_alpha_survives_loading_into_an_integer_one(tmp_path: Path) -> None:
    trained(network(toy.models(), alpha=0.5)).save(tmp_path / "x.safetensors", None, {})
    other = network(toy.models(), alpha=1)
    other.load(tmp_path / "x.safetensors")
    assert other.state_dict()["lora_te1_fc.alpha"].item() == 0.5


def test_save_precision_casts_alpha_too(tmp_path: Path) -> None:
    network(toy.models(), alpha=1).save(tmp_path / "x.safetensors", torch.bfloat16, {})
    assert {tensor.dtype for tensor in load_file(tmp_path / "x.safetensors").values()} == {torch.bfloat16}
    network(toy.models(), alpha=1).save(tmp_path / "y.safetensors", None, {})
    assert load_file(tmp_path / "y.safetensors")["lora_te1_fc.alpha"].dtype == torch.int64


def test_files_carry_metadata_and_hashes_and_pickles_none(tmp_path: Path) -> None:
    made = trained(network(toy.models()))
    made.save(tmp_path / "x.safetensors", None, {"ss_network_dim": "2"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata.keys() == {"ss_network_dim", "sshs_model_hash", "sshs_legacy_hash"}
    made.save(tmp_path / "x.pt", None, {"ss_network_dim": "2"})
    assert torch.load(tmp_path / "x.pt", weights_only=True).keys() == made.state_dict().keys()


def test_ranks_and_alphas_are_read_off_a_file(tmp_path: Path) -> None:
    models = toy.models()
    trained(network(models, rank=3, alpha=6.0)).save(tmp_path / "x.safetensors", torch.bfloat16, {})
    made = network_from_file(tmp_path / "x.safetensors", toy.all_targets(models))
    assert len(made.layers) == 12  # img_in is no default layer and not in the file
    for layer in made.layers:
        assert isinstance(layer, Lora)
        assert (layer.rank, layer.alpha.item()) == (3, 6)
        assert layer.lora_down.weight.dtype == torch.float32


def test_a_file_without_alpha_is_not_scaled(tmp_path: Path) -> None:
    models = toy.models()
    made = trained(network(models, rank=3, alpha=3.0))
    save_file({k: v for k, v in made.state_dict().items() if "alpha" not in k}, tmp_path / "x.safetensors")
    read = network_from_file(tmp_path / "x.safetensors", toy.all_targets(models))
    for one, other in zip(made.layers, read.layers, strict=True):
        assert torch.equal(one.delta(), other.delta())
    other = network(models, rank=3, alpha=1.0)
    other.load(tmp_path / "x.safetensors")
    assert torch.equal(other.layers[0].delta(), made.layers[0].delta())


def test_a_1x1_convolution_and_a_linear_exchange_their_weights(tmp_path: Path) -> None:
    models = toy.models()
    made = trained(network(models))
    tensors = {k: v[:, :, None, None] if v.dim() == 2 else v for k, v in made.state_dict().items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "x.safetensors")
    other = network(models)
    other.load(tmp_path / "x.safetensors")
    assert torch.equal(other.layers[0].delta(), made.layers[0].delta())


def test_layers_that_do_not_match_are_counted_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    models = toy.models()
    trained(network(models)).save(tmp_path / "x.safetensors", None, {})
    only_texts = network({part: models[part] for part in ("first", "second")})
    with caplog.at_level(logging.WARNING):
        assert only_texts.load(tmp_path / "x.safetensors").endswith("2 of 2 layers loaded")
    assert "10 layers (lora_unet" in caplog.text
    only_texts.save(tmp_path / "y.safetensors", None, {})
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        network(models).load(tmp_path / "y.safetensors")
    assert "10 layers (lora_unet" in caplog.text


def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    models = toy.models()
    path = tmp_path / "x.safetensors"
    trained(network(models, rank=3)).save(path, None, {})
    with pytest.raises(UserError, match=r"is 3x8, this model and rank need 2x8; use the file's rank"):
        network(models, rank=2).load(path)
    save_file({f"somewhere.a.lora_{half}.weight": torch.ones(1, 1) for half in "AB"}, path)
    with pytest.raises(UserError, match="fits none of the 12 adapted layers"):
        network(models).load(path)
    with pytest.raises(UserError, match=r"fits no layer of this model: it holds lora_unet_somewhere_a"):
        network_from_file(path, toy.all_targets(models))
    save_file({"lora_te1_fc.oft_blocks": torch.ones(1, 1, 1)}, path)
    with pytest.raises(UserError, match="holds oft_blocks instead of alpha, lora_down"):
        network(models).load(path)


def test_a_network_says_what_it_adapts() -> None:
    models = toy.models()
    assert network(models).describe() == "adapts 10 layers of denoiser, 1 of first, 1 of second"
    assert AdapterNetwork([]).describe() == "adapts nothing"


def names_and_rates(made: AdapterNetwork, *rates) -> list[tuple[str, float | None, int]]:
    return [(g.name, g.learning_rate, len(g.parameters)) for g in made.parameter_groups(*rates)]


def test_parts_take_their_own_rate_or_the_common_one() -> None:
    made = network(toy.models())
    assert names_and_rates(made, 1e-3, None, None) == [
        ("textencoder 1 ", 1e-3, 2),
        ("textencoder 2 ", 1e-3, 2),
        ("unet", 1e-3, 20),
    ]
    assert names_and_rates(made, 1e-3, 1e-4, [1e-5, 0]) == [("textencoder 1 ", 1e-5, 2), ("unet", 1e-4, 20)]
    assert names_and_rates(made, 1e-3, 0, [1e-5]) == [
        ("textencoder 1 ", 1e-5, 2),
        ("textencoder 2 ", 1e-5, 2),
    ]
    assert names_and_rates(made, None, None, None)[0] == ("textencoder 1 ", None, 2)


def test_plus_parameters_are_trained_faster() -> None:
    made = network(toy.models(), rates=Rates(PlusRatios(denoiser=16)))
    groups = made.parameter_groups(1.0, None, [0])
    assert [(g.name, g.learning_rate) for g in groups] == [("unet", 1.0), ("unet plus", 16.0)]
    ups = {id(layer.lora_up.weight) for layer in made.layers if isinstance(layer, Lora)}
    assert {id(parameter) for parameter in groups[1].parameters} < ups
    torch.optim.AdamW([group.as_dict() for group in groups])
