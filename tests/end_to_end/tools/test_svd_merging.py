"""Adapters of any kinds become one LoRA: at full rank it makes of a model what they make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.files.shapes import ToldShape, told_shape
from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lokr import Lokr, shapes_for
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.layers.oft import Oft
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.cli.main import main, script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.families import family_for
from tests import tiny

CPU = torch.device("cpu")
FULL = 4096
"""A rank above every layer's sides."""
Make = Callable[[AdapterTarget], AdapterLayer]

KINDS: dict[str, Make] = {
    "lora": lambda target: Lora(target, 3, 1.5),
    "loha": lambda target: Loha(target, 2, 1.0),
    "loha with a core": lambda target: Loha(target, 2, 1.0, has_core=True),
    "lokr": lambda target: Lokr(target, shapes_for(target.module, 2, 4), 2.0),
    "lokr, both low": lambda target: Lokr(
        target, shapes_for(target.module, 1, 4, has_low_rank_small=True, has_core=True)
    ),
    "lokr, whole": lambda target: Lokr(target, shapes_for(target.module, 2, 4, is_full=True)),
    "oft": lambda target: Oft(target, 2, 0.1, splits=target.splits),
    "oft, as one": lambda target: Oft(target, 2, 0.1),
}
TOLD = ToldShape(8, 12)
TELLING = {"lora", "lokr, whole"}
"""Kinds whose files tell the shape of every layer, in convolutional networks too."""


def targets_of(family: Family) -> list[AdapterTarget]:
    return list(family.adapter_targets(DENOISER, family.load(DENOISER, torch.float32, CPU)))


def learned(path: Path, family: Family, kind: str, seed: int, every: int = 1) -> Path:
    """Write an adapter with numbers everywhere."""
    network = AdapterNetwork(KINDS[kind](target) for target in targets_of(family)[::every])
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1 if kind != "oft" else 0.02)
    network.save(path, None, {"ss_base_model_version": family.identity.base_version})
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Family]]:
    folder = tmp_path_factory.mktemp("models")
    flux = tiny.flux(folder / "flux", dtype=torch.float32).transformer
    paths = {"flux": flux, "sd": tiny.sd(folder / "sd").path}
    return {name: (path, bound(name, path)) for name, path in paths.items()}


def bound(name: str, path: Path) -> Family:
    return family_for(Run("", name, [ModelConfig(pretrained_model_name_or_path=str(path)), FluxOptions()]))


def merged_into(family: str, model: Path, out: Path, *adapters: tuple[Path, float]) -> dict[str, Tensor]:
    """Return the denoiser's weights after a merge into the model's file."""
    tool, option = {"flux": ("flux_merge_lora", "--flux_model"), "sd": ("merge_lora", "--sd_model")}[family]
    paths, ratios = [str(path) for path, _ in adapters], [str(ratio) for _, ratio in adapters]
    argv = [option, str(model), "--save_to", str(out), "--models", *paths, "--ratios", *ratios]
    assert script(f"networks/{tool}", argv) == 0
    return bound(family, out).load(DENOISER, torch.float32, CPU).state_dict()


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(("flux", kind) for kind in KINDS),
        ("sd", "loha with a core"),
        ("sd", "oft"),
    ],
)
def test_at_full_rank_the_lora_changes_a_model_as_what_it_is_made_of(
    family: str, kind: str, models: dict[str, tuple[Path, Family]], tmp_path: Path
) -> None:
    model, own = models[family]
    every = 5 if family == "sd" else 1
    first = learned(tmp_path / "a.safetensors", own, kind, 1, every)
    second = learned(tmp_path / "b.safetensors", own, "lora", 2, 3 * every)
    lora = tmp_path / "lora.safetensors"
    argv = ["--models", str(first), str(second), "--ratios", "0.8", "-0.5", "--new_rank", str(FULL)]
    needs_base = "oft" in kind or (family == "sd" and kind not in TELLING)
    base = ["--base_model", str(model)] if needs_base else []
    assert script("networks/svd_merge_lora", [*argv, "--save_to", str(lora), *base]) == 0
    pair = merged_into(family, model, tmp_path / "pair.safetensors", (first, 0.8), (second, -0.5))
    one = merged_into(family, model, tmp_path / "one.safetensors", (lora, 1.0))
    before = own.load(DENOISER, torch.float32, CPU).state_dict()
    for name, wanted in pair.items():
        torch.testing.assert_close(one[name], wanted, rtol=1e-4, atol=2e-6, msg=name)
    moved = [name for name in pair if not torch.allclose(pair[name], before[name], atol=1e-4)]
    assert len(moved) > 0.9 * len(targets_of(own)[::every])


def test_the_rank_kept_is_that_of_the_largest_directions(
    models: dict[str, tuple[Path, Family]], tmp_path: Path
) -> None:
    _, own = models["flux"]
    path, lora = learned(tmp_path / "a.safetensors", own, "lokr", 3), tmp_path / "lora.safetensors"
    argv = ["--models", str(path), "--ratios", "1", "--new_rank", "2", "--save_to", str(lora)]
    assert main(["merge-svd", *argv]) == 0
    merged, tensors = load_file(lora), read_adapter(path)
    for target in targets_of(own):
        layer, name = KINDS["lokr"](target), f"lora_{target.name}"
        assert isinstance(layer, nn.Module)
        layer.load_state_dict(tensors[name])
        product = merged[f"{name}.lora_up.weight"] @ merged[f"{name}.lora_down.weight"]
        kept, values = torch.linalg.svdvals(product), torch.linalg.svdvals(layer.delta().detach())
        torch.testing.assert_close(kept[:2], values[:2], rtol=1e-4, atol=1e-6)
        assert float(kept[2:].max()) < 1e-5


@pytest.mark.parametrize(
    ("family", "kind", "said"),
    [
        ("flux", "oft", "its tensors alone do not tell; name its model with --base_model"),
        ("sd", "loha", "is a convolution; name its model with --base_model"),
        ("sd", "lokr", "is a convolution; name its model with --base_model"),
    ],
)
def test_what_a_file_does_not_tell_is_asked_for_in_one_line(
    family: str,
    kind: str,
    said: str,
    models: dict[str, tuple[Path, Family]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, out = learned(tmp_path / "a.safetensors", models[family][1], kind, 1), tmp_path / "o.safetensors"
    argv = ["--models", str(path), "--ratios", "1", "--save_to", str(out)]
    assert script("networks/svd_merge_lora", argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert str(path) in error
    assert said in error
    assert not out.exists()


def test_adapters_and_models_that_do_not_fit_together_are_named(
    models: dict[str, tuple[Path, Family]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, own = models["flux"]
    path = learned(tmp_path / "a.safetensors", own, "lora", 1)
    other = {
        key: torch.cat([value, value]) if "lora_up" in key else value
        for key, value in load_file(path).items()
    }
    save_file(other, tmp_path / "b.safetensors")
    argv = ["--models", str(tmp_path / "b.safetensors"), "--ratios", "1"]
    out = ["--save_to", str(tmp_path / "o.safetensors")]
    assert main(["merge-svd", *argv[:2], str(path), "--ratios", "1", "1", *out]) == 2
    assert f"in {tmp_path / 'b.safetensors'}; use adapters for one model" in capsys.readouterr().err
    assert main(["merge-svd", *argv, *out, "--base_model", str(model)]) == 2
    assert "in --base_model; use adapters for one model" in capsys.readouterr().err


@pytest.mark.parametrize("module", [nn.Linear(12, 8), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 1)], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "oft" not in kind])
def test_shapes_are_read_off_the_tensors(kind: str, module: nn.Module) -> None:
    weight = module.get_parameter("weight")
    layer = KINDS[kind](AdapterTarget("unet_x", module, DENOISER))
    assert isinstance(layer, nn.Module)
    told = told_shape("lora_unet_down_blocks_0_conv1", layer.state_dict())
    assert told is not None
    assert (told.rows, told.columns) == tuple(weight.flatten(1).shape)
    assert told.kernel in (None, tuple(weight.shape[2:]))
    if told.kernel is not None:
        assert told.module().get_parameter("weight").shape == weight.shape
    elif weight.dim() == 2:
        assert told_shape("lora_te_text_model_encoder_layers_0_mlp_fc1", layer.state_dict()) == ToldShape(
            8, 12
        )
