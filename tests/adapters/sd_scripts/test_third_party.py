"""A network module that we know nothing of trains like ours."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from sfumato.adapters.network.plan import NetworkPlan
from sfumato.adapters.sd_scripts import network_modules
from sfumato.adapters.sd_scripts.third_party import ForeignNetwork
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from tests.adapters import toy

SOURCE = '''
from pathlib import Path

import torch
from torch import nn


def create_network(
    multiplier, network_dim, network_alpha, vae, text_encoder, unet, neuron_dropout=None, **kwargs
):
    if kwargs.get("nothing"):
        return nn.Linear(1, 1)
    if kwargs.get("empty"):
        return Empty()
    if kwargs.get("fails"):
        raise ValueError("no way to cut 20 into 3")
    if kwargs.get("reads"):
        assert float(next(unet.parameters()).sum()) != 0.5
    return Bias(unet, len(text_encoder), {"dim": network_dim, "dropout": neuron_dropout, **kwargs})


def create_network_from_weights(
    multiplier, file, vae, text_encoder, unet, weights_sd=None, for_inference=False, **kwargs
):
    network = Bias(unet, len(text_encoder), {"from": file})
    weights = torch.load(file, weights_only=True)
    network.load_state_dict(weights)
    return network, weights


class Empty(nn.Module):
    def apply_to(self, *args):
        pass

    prepare_grad_etc = prepare_optimizer_params = load_weights = save_weights = apply_to


class Bias(nn.Module):
    """Adds a learned number to what the denoiser makes."""

    def __init__(self, unet, num_text_encoders, arguments):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(1))
        self.multiplier = 1.0
        self.arguments = arguments
        self.calls = []

    def apply_to(self, text_encoder, unet, apply_text_encoder=True, apply_unet=True):
        self.calls.append(f"apply {apply_text_encoder} {apply_unet}")
        original = unet.forward
        unet.forward = lambda *inputs: original(*inputs) + self.value * self.multiplier

    def set_multiplier(self, multiplier):
        self.multiplier = multiplier

    def prepare_network(self, args):
        self.calls.append(f"prepared {args.network_dim}")

    def prepare_optimizer_params(self, text_encoder_lr, unet_lr):
        self.rates = (text_encoder_lr, unet_lr)
        return [{"params": [self.value], "lr": unet_lr, "weight_decay": 0.5}, {"params": [], "lr": 1.0}]

    def prepare_grad_etc(self, text_encoder, unet):
        self.requires_grad_(True)

    def enable_gradient_checkpointing(self):
        self.calls.append("checkpointing")

    def on_epoch_start(self, text_encoder, unet):
        self.calls.append("epoch")

    def load_weights(self, file):
        self.load_state_dict(torch.load(file, weights_only=True))
        return "all of it"

    def save_weights(self, file, dtype, metadata):
        if metadata.get("fail"):
            Path(file).write_text("half")
            raise RuntimeError("half way")
        torch.save(self.state_dict(), file)
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "my_bias.py").write_text(SOURCE)
    (folder / "my_broken.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(folder)
    yield
    for name in ("my_bias", "my_broken"):
        sys.modules.pop(name, None)


def plan(*arguments: str, module: str = "my_bias", **options: Any) -> NetworkPlan:
    config = NetworkConfig(network_module=module, network_args=arguments or None, **options)
    return network_modules.resolve(Run("train", "flux", [config]))


def build(models: dict[str, Any], *arguments: str, **options: Any) -> tuple[ForeignNetwork, Any]:
    made = plan(*arguments, **options).build(toy.ToyFamily(), models)  # type: ignore[arg-type]
    assert isinstance(made, ForeignNetwork)
    return made, made.trainable


def test_it_gets_what_it_was_promised() -> None:
    made, foreign = build(toy.models(), "preset=full", "algo=x", network_dim=8, network_dropout=0.25)
    assert foreign.arguments == {"dim": 8, "dropout": 0.25, "preset": "full", "algo": "x"}
    assert foreign.calls == ["prepared 8", "apply True True"]
    made.enable_checkpointing()
    made.on_epoch_start()
    made.on_step_start()
    assert foreign.calls[2:] == ["checkpointing", "epoch"]
    assert made.describe() == "my_bias.Bias trains 1 values"


def test_a_text_encoder_that_is_not_loaded_is_stood_in_for() -> None:
    models = {DENOISER: toy.models()[DENOISER]}
    _, foreign = build(models, network_train_unet_only=True)
    assert foreign.calls[-1] == "apply False True"
    assert plan(network_train_unet_only=True).parts(toy.ToyFamily()) == [DENOISER]  # type: ignore[arg-type]


def test_it_learns_and_its_strength_can_be_set() -> None:
    models = toy.models()
    inputs = torch.randn(2, toy.WIDTH)
    before = models[DENOISER](inputs)
    made, foreign = build(models)
    foreign.value.data += 2
    torch.testing.assert_close(models[DENOISER](inputs), before + 2)
    made.set_strength(torch.tensor([0.5, 0.5]))
    torch.testing.assert_close(models[DENOISER](inputs), before + 1)
    made.detach()
    torch.testing.assert_close(models[DENOISER](inputs), before)
    made.attach()
    torch.testing.assert_close(models[DENOISER](inputs), before + 2)
    with pytest.raises(UserError, match="one network_multiplier per batch"):
        made.set_strength(torch.tensor([0.5, 1.0]))


def test_it_limits_its_norms_if_it_can() -> None:
    made, foreign = build(toy.models())
    assert not made.can_limit_norms
    foreign.apply_max_norm_regularization = lambda limit, device: (2, 0.25, limit)
    assert made.can_limit_norms
    figures = {name: figure.item() for name, figure in made.limit_norms(0.5).items()}
    assert figures == {
        "max_norm/keys_scaled": 2,
        "max_norm/average_key_norm": 0.25,
        "max_norm/max_key_norm": 0.5,
    }


def test_its_groups_keep_their_options_and_old_signatures_work() -> None:
    made, foreign = build(toy.models())
    groups = made.parameter_groups(1e-3, 1e-4, [1e-5, 1e-6])
    assert foreign.rates == (1e-5, 1e-4)
    assert [group.as_dict() for group in groups] == [
        {"params": [foreign.value], "lr": 1e-4, "weight_decay": 0.5}
    ]


def test_it_saves_atomically_and_goes_on_from_a_file(tmp_path: Path) -> None:
    made, foreign = build(toy.models())
    foreign.value.data += 3
    path = tmp_path / "out" / "x.pt"
    made.save(path, None, {})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"my_bias could not save .*x.pt: RuntimeError: half way"):
        made.save(path, None, {"fail": "yes"})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    _, again = build(toy.models(), network_weights=str(path))
    assert again.value.item() == 3
    _, as_file = build(toy.models(), network_weights=str(path), dim_from_weights=True)
    assert as_file.value.item() == 3
    assert json.dumps(as_file.arguments) == json.dumps({"from": str(path)})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "fails=1",
            "my_bias with --network_args fails=1 could not make its network: ValueError: no way to cut",
        ),
        ("empty=1", "my_bias with --network_args empty=1 adapts no layer of this model"),
    ],
)
def test_its_errors_are_one_line(argument: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(toy.models(), argument)


def test_an_error_of_a_layer_is_one_line_and_those_of_others_are_left_alone() -> None:
    models = toy.models()
    _, foreign = build(models)
    inputs = torch.randn(2, toy.WIDTH)
    foreign.value = None
    with pytest.raises(UserError, match=r"my_bias failed in .*: TypeError: .*; leave such layers out"):
        models[DENOISER](inputs)
    with pytest.raises(RuntimeError, match="shapes"):  # the layer below
        models[DENOISER](torch.randn(2, toy.WIDTH + 1))


def test_a_network_that_reads_numbers_is_rehearsed_without_them() -> None:
    with torch.device("meta"):
        models = toy.models()
    rehearsed = plan("reads=1").rehearse(toy.ToyFamily(), models)  # type: ignore[arg-type]
    assert rehearsed is not None
    assert [name for name, _ in rehearsed.tensors()] == ["value"]
    with torch.device("meta"), pytest.raises(UserError, match="no way to cut"):
        plan("fails=1").rehearse(toy.ToyFamily(), toy.models())  # type: ignore[arg-type]


def test_each_network_is_built_as_if_it_were_the_only_one() -> None:
    kinds = importlib.import_module("my_bias")
    kinds.Bias.TARGETS = ["a"]
    build(toy.models())
    kinds.Bias.TARGETS.append("b")
    kinds.Bias.MORE = 1
    build(toy.models())
    assert kinds.Bias.TARGETS == ["a"]
    assert not hasattr(kinds.Bias, "MORE")


def test_a_file_that_it_does_not_take_is_refused(tmp_path: Path) -> None:
    made, foreign = build(toy.models())
    foreign.value.data += 3
    path = tmp_path / "x.pt"
    made.save(path, None, {})
    foreign.value.data -= 3
    foreign.load_weights = lambda file: None
    with pytest.raises(UserError, match=r"my_bias did not take value from .*x.pt; give the --network_args"):
        made.load(path)
    torch.save({"other": torch.ones(1)}, path)
    with pytest.raises(UserError, match=r"my_bias knows nothing of .*x.pt"):
        made.load(path)


def test_what_it_lacks_is_one_line() -> None:
    with pytest.raises(UserError, match="needs not_installed_anywhere, which is missing"):
        plan(module="my_broken")
    with pytest.raises(UserError, match="without apply_to, load_weights"):
        build(toy.models(), "nothing=1")
