"""LoHa and LoKr: their changes, files and limits, and that LyCORIS makes the same of the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.layers import dense
from sfumato.adapters.layers.layer import AdapterLayer, Dropouts, attach, limit_norm, merge
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lokr import Lokr, shapes_for, split
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import network_modules
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget
from tests.adapters import toy

LINEAR = (24, 20)
CONV = (24, 20, 3, 3)


def module_of(shape: tuple[int, ...], stride: int = 1) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    return nn.Conv2d(shape[1], shape[0], shape[2], stride, padding=1)


def inputs_of(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(2, 5, shape[1]) if len(shape) == 2 else torch.randn(2, shape[1], 6, 6)


def loha(module: nn.Module, dropouts: Dropouts = Dropouts(), **options: Any) -> Loha:  # noqa: B008 - frozen
    return Loha(AdapterTarget("unet_x", module, DENOISER), 3, 2.0, dropouts, **options)


def lokr(module: nn.Module, dropouts: Dropouts = Dropouts(), **options: Any) -> Lokr:  # noqa: B008 - frozen
    return Lokr(AdapterTarget("unet_x", module, DENOISER), shapes_for(module, 2, **options), 1.0, dropouts)


FORMS = [
    pytest.param(loha, LINEAR, {}, id="loha"),
    pytest.param(loha, CONV, {}, id="loha-conv"),
    pytest.param(loha, CONV, {"has_core": True}, id="loha-core"),
    pytest.param(lokr, LINEAR, {}, id="lokr"),
    pytest.param(lokr, LINEAR, {"is_full": True}, id="lokr-full"),
    pytest.param(lokr, LINEAR, {"factor": 10, "has_low_rank_small": True}, id="lokr-both"),
    pytest.param(lokr, CONV, {}, id="lokr-conv"),
    pytest.param(lokr, CONV, {"factor": 4, "has_core": True}, id="lokr-core"),
]
forms = pytest.mark.parametrize(("make", "shape", "options"), FORMS)


def learned(layer: nn.Module) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return layer.eval()


@forms
def test_untrained_layers_change_nothing_and_learn(make: Any, shape: Any, options: Any) -> None:
    module = module_of(shape)
    layer, inputs = make(module, **options), inputs_of(shape)
    before = module(inputs)
    attach(layer)
    assert torch.equal(module(inputs), before)
    module(inputs).pow(2).sum().backward()
    gradients = [parameter.grad for parameter in layer.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@forms
def test_acting_live_equals_being_merged(make: Any, shape: Any, options: Any) -> None:
    module = module_of(shape, stride=2)
    layer, inputs = learned(make(module, **options)), inputs_of(shape)
    layer.strength = 0.7
    handle = attach(layer)
    live = module(inputs)
    layer.strength = torch.tensor([0.7, 0.0])
    torch.testing.assert_close(module(inputs)[0], live[0])
    handle.remove()
    before = module(inputs)
    assert not torch.allclose(live, before, atol=1e-3)
    merge(layer, 0.7)
    torch.testing.assert_close(module(inputs), live, rtol=1e-4, atol=1e-4)


@forms
def test_gradients_are_those_of_the_change_written_out(make: Any, shape: Any, options: Any) -> None:
    module = module_of(shape)
    layer, inputs = learned(make(module, **options)), inputs_of(shape).requires_grad_()
    module.requires_grad_(False)
    targets = [inputs, *layer.parameters()]
    attached = attach(layer)
    found = torch.autograd.grad(module(inputs).pow(2).sum(), targets)
    attached.remove()
    written_out = module(inputs) + dense.apply(module, inputs, layer.delta())
    expected = torch.autograd.grad(written_out.pow(2).sum(), targets)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@forms
def test_norms_are_limited(make: Any, shape: Any, options: Any) -> None:
    layer = learned(make(module_of(shape), **options))
    norm = layer.delta().norm()
    left, is_scaled = limit_norm(layer, norm.item() / 3)
    assert is_scaled
    torch.testing.assert_close(layer.delta().norm(), left, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left, norm / 3, rtol=1e-4, atol=1e-5)
    assert not limit_norm(layer, 1e6)[1]


@forms
def test_a_file_says_all_that_is_needed(make: Any, shape: Any, options: Any, tmp_path: Path) -> None:
    module = module_of(shape)
    layer = learned(make(module, **options))
    path = tmp_path / "x.safetensors"
    AdapterNetwork([layer]).save(path, None, {})
    again = network_from_file(path, [layer.target]).layers[0]
    assert type(again) is type(layer)
    torch.testing.assert_close(again.delta(), layer.delta())


@pytest.mark.parametrize("make", [loha, lokr])
@pytest.mark.parametrize("shape", [LINEAR, CONV])
def test_dropouts_leave_out_outputs_or_all(make: Any, shape: Any) -> None:
    module = module_of(shape)
    for dropouts in (Dropouts(rank=0.5), Dropouts(module=0.5)):
        layer, inputs = learned(make(module, dropouts)), inputs_of(shape)
        before, torch_state = module(inputs), torch.get_rng_state()
        handle = attach(layer.train())
        changes = [module(inputs) - before for _ in range(12)]
        torch.set_rng_state(torch_state)
        handle.remove()
        silent = [bool((change == 0).all()) for change in changes]
        assert any(silent) == (dropouts.module is not None)
        channels = [change.movedim(1 if len(shape) == 4 else -1, 0).flatten(1) for change in changes]
        dead = sum(int((channel == 0).all(1).sum()) for channel in channels)
        assert 0 < dead < 12 * shape[0]


def test_outputs_that_are_kept_make_up_for_those_that_are_left_out() -> None:
    module, inputs = nn.Linear(6, 400, bias=False), torch.ones(1, 6)
    layer = learned(loha(module, Dropouts(rank=0.25)))
    output = module(inputs)
    whole, dropped = (layer.train(mode).change(inputs, output) - output for mode in (False, True))
    factors = (dropped / whole).flatten()
    kept = factors.abs() > 0.1
    assert factors[kept].tolist() == pytest.approx([1 / 0.75] * int(kept.sum()), rel=1e-2)
    assert 0.65 < kept.float().mean() < 0.85


@pytest.mark.parametrize(("rank", "is_whole"), [(1, False), (2, True), (3, True)])
def test_a_large_factor_is_whole_from_half_its_larger_side_on(rank: int, is_whole: bool) -> None:
    assert ("lokr_w2" in shapes_for(nn.Linear(16, 16), rank, 4)) == is_whole  # 4 x 4 is repeated 4 x 4 times


def test_widths_are_split_as_lycoris_does() -> None:
    from lycoris.functional.general import factorization

    for width in (*range(1, 200), 320, 640, 768, 1280, 2048, 3072, 10240):
        for factor in (-1, 1, 2, 3, 4, 8, 16, 1000):
            assert split(width, factor) == tuple(factorization(width, factor)), (width, factor)


THEIR_NAMES = {"has_core": "use_tucker", "is_full": "full_matrix", "has_low_rank_small": "decompose_both"}


@forms
def test_lycoris_has_the_same_tensors_and_makes_the_same_of_them(make: Any, shape: Any, options: Any) -> None:
    from lycoris.modules.loha import LohaModule
    from lycoris.modules.lokr import LokrModule

    module = module_of(shape)
    layer, inputs = learned(make(module, **options)), inputs_of(shape)
    theirs = {THEIR_NAMES.get(name, name): value for name, value in options.items()}
    kind, rank, alpha = (LohaModule, 3, 2.0) if make is loha else (LokrModule, 2, 1.0)
    other = kind("lora_unet_x", module, 1.0, rank, alpha, **theirs)
    fresh = {name: tuple(tensor.shape) for name, tensor in other.state_dict().items()}
    assert fresh == {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    other.load_state_dict(layer.state_dict(), strict=False)  # "scalar" is in no file
    handle = attach(layer)
    ours = module(inputs)
    handle.remove()
    torch.testing.assert_close(other(inputs), ours, rtol=1e-4, atol=1e-4)


def resolve(module: str, *network_args: str, **options: Any) -> NetworkPlan:
    config = NetworkConfig(network_module=module, network_args=network_args or None, **options)
    return network_modules.resolve(Run("", "flux", [config]))


@pytest.mark.parametrize(
    ("module", "arguments", "described"),
    [
        ("networks.loha", (), "hada_w1_a"),
        ("networks.lokr", ("factor=4", "decompose_both=True"), "lokr_w1"),
        ("networks.lokr", ("full_matrix=True", "img_attn_dim=0"), "lokr_w2"),
    ],
)
def test_the_modules_are_built_by_name(
    module: str, arguments: tuple[str, ...], described: str, tmp_path: Path
) -> None:
    family: Any = toy.ToyFamily()
    made = resolve(module, *arguments, network_dim=2).build(family, toy.models())
    assert isinstance(made, AdapterNetwork)
    assert any(key.endswith(described) for key in made.state_dict())
    assert len(made.layers) == (9 if "img_attn_dim=0" in arguments else 11)
    path = tmp_path / "x.safetensors"
    made.save(path, torch.float16, {})
    again = resolve(module, "rank_dropout=0.25", network_weights=str(path), dim_from_weights=True)
    layers: list[AdapterLayer] = again.build(family, toy.models()).layers  # type: ignore[attr-defined]
    assert len(layers) == len(made.layers)
    assert {layer.dropouts.rank for layer in layers} == {0.25}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("module", "argument", "said"),
    [
        ("networks.loha", "loraplus_lr_ratio=4", "is unknown"),
        ("networks.lokr", "factor=0", "give how many parts, or -1"),
        ("networks.loha", "split_qkv=True", "is unknown"),
    ],
)
def test_what_a_kind_does_not_know_is_refused(module: str, argument: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(module, argument)


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(ValueError, match="ungrouped"):
        loha(nn.Conv2d(4, 4, 3, groups=2))
