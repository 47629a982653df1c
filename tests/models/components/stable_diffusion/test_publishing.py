"""Whole models are written with trained parts: these change, and everything else is the base's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.errors import UserError
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, tensors_of
from tests import tiny

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")
PREFIXES = {
    "sd1": {"text_encoder": "cond_stage_model.transformer."},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {"text_encoder1": "conditioner.embedders.0.", "text_encoder2": "conditioner.embedders.1."},
}
UNUSED = {
    "sd1": ("position_ids",),
    "sd2": ("resblocks.2.", "logit_scale", "text_projection"),
    "sdxl": ("logit_scale",),
}
UNKNOWN = {"made_up": torch.tensor([0.25], dtype=torch.float64)}
NUM_TENSORS = {"sd1": 898, "sd2": 903, "sdxl": 889}
"""Of each tiny base, the unknown one left out."""


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    made = tiny.sdxl(folder) if request.param == "sdxl" else tiny.sd(folder, v2=request.param == "sd2")
    save_file({**load_file(made.path), **UNKNOWN}, made.path)
    return request.param, made.path


def bound(kind: str, path: Path) -> SdFamily | SdxlFamily:
    tokenizers = path.parent / "tokenizers"
    if kind == "sdxl":
        return SdxlFamily(path, tokenizers=tokenizers)
    return SdFamily(path, tokenizers=tokenizers, is_v2=kind == "sd2")


def trained(family: Family, *parts: str) -> dict[str, nn.Module]:
    """Return parts in which every weight has moved."""
    modules = {part: family.load(part, torch.float32, CPU) for part in parts}
    for module in modules.values():
        for weight in module.state_dict().values():
            weight += 0.5
    return modules


def sources(modules: dict[str, nn.Module]) -> dict[str, PartTensors]:
    return {part: tensors_of(module) for part, module in modules.items()}


def encoder_of(kind: str) -> str:
    return list(PREFIXES[kind])[-1]


def is_unused(kind: str, name: str) -> bool:
    return any(word in name for word in UNUSED[kind])


@pytest.mark.parametrize(
    ("base", "suffix"),
    [("sd1", ".ckpt"), ("sd2", ".safetensors"), ("sdxl", ".safetensors")],
    indirect=["base"],
)
def test_a_file_has_what_was_trained_and_the_rest_of_its_base(
    suffix: str, base: tuple[str, Path], tmp_path: Path
) -> None:
    kind, path = base
    family, out = bound(kind, path), tmp_path / f"out{suffix}"
    encoder = encoder_of(kind)
    parts, how = sources(trained(family, DENOISER, encoder)), Publishing()
    family.write(parts, out, how)
    found = torch.load(out, weights_only=True)["state_dict"] if suffix == ".ckpt" else load_file(out)
    before, prefixes = load_file(path), ("model.diffusion_model.", PREFIXES[kind][encoder])
    assert len(found) == len(before) == NUM_TENSORS[kind] + len(UNKNOWN)
    kept = [name for name in before if torch.equal(found[name], before[name])]
    expected = [name for name in before if not name.startswith(prefixes) or is_unused(kind, name)]
    assert kept == expected
    assert all(torch.equal(found[name], value) for name, value in UNKNOWN.items())
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(found[name], before[name] + 0.5)
    frame = (
        400_000 if suffix == ".ckpt" else 1
    )  # of a pickled file, for each of its tensors a few hundred bytes
    assert abs(out.stat().st_size - family.written_bytes(parts, how)) < frame, out.stat()
    again = bound(kind, out).load(encoder, torch.float32, CPU).state_dict()
    assert all(torch.equal(again[name], tensor.load()) for name, tensor in parts[encoder].items())


@pytest.mark.parametrize("base", ["sd1"], indirect=True)
def test_a_base_of_another_program_keeps_its_prefixes_and_no_tensor_twice(
    base: tuple[str, Path], tmp_path: Path
) -> None:
    kind, path = base
    others = {
        "model.diffusion_model.": "diffusion_model.",
        "first_stage_model.": "vae.",
        "transformer.text_model.": "transformer.",  # as early checkpoints have it
    }
    tensors = load_file(path)
    for usual, other in others.items():
        tensors = {name.replace(usual, other): value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "base.safetensors")
    family, same = bound(kind, tmp_path / "base.safetensors"), bound(kind, path)
    family.checkpoint.check(list(family.checkpoint.layout.parts))
    for part in family.checkpoint.layout.parts:
        found, expected = (each.load(part, torch.float32, CPU).state_dict() for each in (family, same))
        assert all(torch.equal(found[name], value) for name, value in expected.items())

    family.write(sources(trained(family, DENOISER)), tmp_path / "out.safetensors", Publishing())
    written = load_file(tmp_path / "out.safetensors")
    assert len(written) == len(tensors)
    assert torch.equal(written["diffusion_model.out.2.weight"], tensors["diffusion_model.out.2.weight"] + 0.5)
    assert torch.equal(written["vae.decoder.conv_in.weight"], tensors["vae.decoder.conv_in.weight"])
    assert "cond_stage_model.transformer.text_model.final_layer_norm.weight" in written


@pytest.mark.parametrize("base", ["sd1"], indirect=True)
def test_a_checkpoint_without_autoencoder_asks_for_one(base: tuple[str, Path], tmp_path: Path) -> None:
    kind, path = base
    own = {k: v for k, v in load_file(path).items() if not k.startswith("first_stage_model.")}
    save_file(own, tmp_path / "base.safetensors")
    family = bound(kind, tmp_path / "base.safetensors")
    with pytest.raises(UserError, match=r"base\.safetensors: it holds no autoencoder; .* one with --vae"):
        family.check([VAE])


@pytest.mark.parametrize("base", ["sdxl"], indirect=True)
def test_a_folder_has_what_was_trained_and_opens_in_diffusers(base: tuple[str, Path], tmp_path: Path) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    kind, path = base
    family, out = bound(kind, path), tmp_path / "out"
    encoder = encoder_of(kind)
    modules, how = trained(family, DENOISER, encoder), Publishing(Layout.FOLDER, dtype=torch.float32)
    family.write(sources(modules), out, how)
    opened = DiffusionPipeline.from_pretrained(out)
    modules[VAE] = family.load(VAE, torch.float32, CPU)
    for part, module in modules.items():
        name = {DENOISER: "unet", "text_encoder1": "text_encoder", "text_encoder2": "text_encoder_2"}
        found = getattr(opened, name.get(part, part)).state_dict()
        assert all(torch.equal(found[key], value) for key, value in module.state_dict().items()), part
    weights = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    assert family.written_bytes(sources(modules), how) == weights


def test_a_folder_takes_over_what_it_does_not_know(tmp_path: Path) -> None:
    base = tiny.sd(tmp_path, as_folder=True).path
    (base / "safety_checker").mkdir()
    (base / "safety_checker" / "model.safetensors").write_bytes(b"12345678")
    (base / "LICENSE.md").write_text("free")
    (base / "old.safetensors").write_bytes(b"another form of the model")
    index = json.loads((base / "model_index.json").read_text())
    entry = {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"]}
    (base / "model_index.json").write_text(json.dumps(index | entry))
    family = SdFamily(base)
    family.write(sources(trained(family, DENOISER)), tmp_path / "out", Publishing(Layout.FOLDER))
    assert (tmp_path / "out" / "safety_checker" / "model.safetensors").read_bytes() == b"12345678"
    assert (tmp_path / "out" / "LICENSE.md").read_text() == "free"
    assert not (tmp_path / "out" / "old.safetensors").exists()
    assert json.loads((tmp_path / "out" / "model_index.json").read_text()).items() >= entry.items()


@pytest.mark.parametrize("base", ["sd2"], indirect=True)
def test_tensors_are_made_one_at_a_time_and_always_in_the_same_order(
    base: tuple[str, Path], tmp_path: Path
) -> None:
    kind, path = base
    family = bound(kind, path)
    parts = sources(trained(family, DENOISER, encoder_of(kind)))
    asked: list[str] = []

    def gathered(name: str, tensor: LazyTensor) -> LazyTensor:
        return tensor.changed(lambda value: noted(name, value))

    def noted(name: str, value: Tensor) -> Tensor:
        if value.device == CPU:
            asked.append(name)
        return value

    watched = {p: {n: gathered(f"{p} {n}", t) for n, t in part.items()} for p, part in parts.items()}
    orders = []
    for number in range(2):
        asked.clear()
        assert family.written_bytes(watched, Publishing()) > 0
        assert asked == []
        family.write(watched, tmp_path / f"{number}.safetensors", Publishing())
        orders.append(list(asked))
    assert orders[0] == orders[1]
    assert set(orders[0]) == {f"{part} {name}" for part, tensors in parts.items() for name in tensors}


def halved(parts: dict[str, PartTensors]) -> None:
    tensors = dict(parts[DENOISER])
    tensors.pop("conv_in.weight")
    parts[DENOISER] = tensors


def broken(parts: dict[str, PartTensors]) -> None:
    bad = LazyTensor.of(torch.full((32,), float("nan")))
    parts[DENOISER] = {**parts[DENOISER], "conv_in.bias": bad}


@pytest.mark.parametrize(
    ("layout", "damage", "complaint"),
    [
        (Layout.WHOLE_FILE, halved, "not the tensors"),
        (Layout.FOLDER, broken, "holds values that are no numbers"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    layout: Layout, damage: Callable[[dict[str, PartTensors]], None], complaint: str, tmp_path: Path
) -> None:
    family = bound("sd1", tiny.sd(tmp_path / "base").path)
    parts = sources({DENOISER: family.load(DENOISER, torch.float32, CPU)})
    damage(parts)
    with pytest.raises(Exception, match=complaint):
        family.write(parts, tmp_path / "out" / "x.safetensors", Publishing(layout))
    assert [file for file in (tmp_path / "out").rglob("*") if file.is_file()] == []
