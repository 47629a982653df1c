"""What a package outside the program brings works everywhere, without an edit in the program."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from sfumato.sampling import session
from tests import tiny
from tests.runs import error_of

SCALE = '''
"""A learned scale of each output channel."""

from dataclasses import dataclass

import torch
from torch import nn

from sfumato import AdapterKind, FileForm
from sfumato.adapters.layers.layer import per_sample


@dataclass(frozen=True)
class ScaleArguments:
    start: float = 0.0


class ChannelScale(nn.Module):
    is_off = False

    def __init__(self, target, start=0.0):
        super().__init__()
        self.name, self.target, self.strength = f"scale_{target.name}", target, 1.0
        self.channel_scale = nn.Parameter(torch.full((target.module.weight.shape[0],), start))

    def change(self, inputs, output):
        bias = 0 if self.target.module.bias is None else self.target.module.bias
        shape = (-1, 1, 1) if isinstance(self.target.module, nn.Conv2d) else (-1,)
        own = (output.movedim(1, -1) - bias).movedim(-1, 1) if len(shape) == 3 else output - bias
        own = own * self.channel_scale.reshape(shape)
        return output + (own * per_sample(self.strength, own)).to(output.dtype)

    def delta(self):
        weight = self.target.module.weight.float()
        return weight * self.channel_scale.float().reshape(-1, *[1] * (weight.dim() - 1))

    def plus_parameters(self):
        return []


KIND = AdapterKind(
    name="scale",
    title="channel scale",
    description="a channel scale",
    prefix="scale_",
    arguments=ScaleArguments,
    make=lambda target, arguments, dropouts: ChannelScale(target, arguments.start),
    files=FileForm(
        marks=("channel_scale",),
        load=lambda target, tensors, dropouts: ChannelScale(target),
        needs_weight=True,
    ),
)
'''


@pytest.fixture
def _package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install a package that offers the kind of adapter above, and one that cannot be imported."""
    site = tmp_path / "site"
    offer(site, "scale", "[sfumato.adapters]\nscale = toy_scale:KIND\n")
    offer(site, "broken", "[sfumato.adapters]\nbroken = toy_broken:KIND\n")
    (site / "toy_scale.py").write_text(SCALE)
    (site / "toy_broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(site)
    yield
    sys.modules.pop("toy_scale", None)


def offer(site: Path, name: str, entry_points: str) -> None:
    """Write what an installer writes beside a package that offers something."""
    information = site / f"toy_{name}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: toy-{name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(entry_points)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Install a package that offers a family of models; yield a model of it."""
    site = tmp_path / "family site"
    offer(site, "family", "[sfumato.families]\ntoy = toy_family.facts:FACTS\n")
    shutil.copytree(Path(__file__).with_name("toy_family"), site / "toy_family")
    monkeypatch.syspath_prepend(site)
    family = importlib.import_module("toy_family.family")
    torch.manual_seed(0)
    save_file(family.Toy().state_dict(), tmp_path / "toy.safetensors")
    yield tmp_path / "toy.safetensors"
    for name in [name for name in sys.modules if name.startswith("toy_family")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    folder = tmp_path_factory.mktemp("model")
    return tiny.flux(folder, hidden=32, heads=1, depth=1, depth_single=1, dtype=torch.float32)


def train(command: list[str], model: list[str], out: Path, steps: int, *options: str) -> Path:
    """Train a channel scale with a command; return its file."""
    if not (out / "data").exists():
        tiny.pictures(out / "data" / "1_cat", 2)
    text = f"--resolution 64 --caption_extension .txt --learning_rate 1e-1 --max_train_steps {steps} --seed 1"
    places = [
        "--train_data_dir",
        str(out / "data"),
        "--output_dir",
        str(out),
        "--max_data_loader_n_workers=0",
    ]
    assert main([*command, *model, *places, *text.split(), *options]) == 0
    return out / f"{options[options.index('--output_name') + 1]}.safetensors"


@pytest.mark.usefixtures("_package")
def test_a_kind_of_adapter_from_another_package_does_all_that_ours_do(
    model: tiny.TinyFlux,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(session, "default_device", lambda: torch.device("cpu"))
    flux, places = ["train", "flux", "scale"], [*model.arguments, "--network_train_unet_only"]
    options = ["--network_args", "start=0.5", "--save_state"]
    first = train(flux, places, tmp_path, 2, "--output_name", "two", *options, "--save_every_n_steps", "1")
    whole = load_file(first)
    assert {key.split("_")[0] for key in whole} == {"scale"}
    name = "scale_unet_double_blocks_0_img_attn_qkv.channel_scale"
    assert whole[name].shape == (96,)
    assert 0 < float((whole[name] - 0.5).abs().max()) < 0.5

    state = str(tmp_path / "two-step00000001-state")
    resumed = train(flux, places, tmp_path, 2, "--output_name", "resumed", *options[:2], "--resume", state)
    assert all(torch.equal(tensor, whole[key]) for key, tensor in load_file(resumed).items())

    again = ["--output_name", "more", "--network_weights", str(first), "--dim_from_weights"]
    more = load_file(train(flux, places, tmp_path, 1, *again))
    assert more.keys() == whole.keys()
    assert not torch.equal(more[name], whole[name])

    assert main(["check-lora", str(first)]) == 0
    shown = capfd.readouterr()
    assert f": a channel scale of {len(whole)} layers" in shown.out
    assert "\nunet_double_blocks_0  10 " in shown.out
    (warning,) = (line for line in shown.err.splitlines() if "toy-broken" in line)
    assert "a_module_that_is_missing" in warning

    merged = model.transformer.with_name("merged.safetensors")  # beside the tokenizers
    asked = ["--flux_model", str(model.transformer), "--save_to", str(merged), "--models", str(first)]
    assert main(["merge", "flux", *asked, "--ratios", "1", "--precision", "float"]) == 0
    weight = "double_blocks.0.img_attn.qkv.weight"
    expected = load_file(model.transformer)[weight] * (1 + whole[name][:, None])
    assert torch.allclose(load_file(merged)[weight], expected, atol=1e-6)

    base, live = draw(model, tmp_path / "images"), draw(model, tmp_path / "images", "--lora_weights", first)
    assert np.abs(base - live).mean() > 1
    assert np.abs(draw(model, tmp_path / "images", "--ckpt_path", merged) - live).mean() < 0.1


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize(("kind", "prefix"), [("networks.loha", "lora"), ("scale", "scale")])
def test_a_family_from_another_package_does_all_that_ours_do(
    kind: str, prefix: str, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = ["--pretrained_model_name_or_path", str(toy)]
    toy_lora, own = ["train", "toy", "lora"], [*base, "--network_module", kind, "--network_train_unet_only"]
    (tmp_path / "prompts.txt").write_text("cat --w 64 --h 64 --s 2")
    shown = ["--sample_prompts", str(tmp_path / "prompts.txt"), "--sample_every_n_steps", "2"]
    states = ["--save_state", "--save_every_n_steps", "1"]
    first = train(toy_lora, own, tmp_path, 2, "--output_name", "two", *states, *shown)
    whole = load_file(first)
    assert {key.partition(".")[0] for key in whole} == {f"{prefix}_unet_toy_in", f"{prefix}_unet_toy_out"}
    (preview,) = (tmp_path / "sample").glob("*.png")
    with Image.open(preview) as image:
        assert image.size == (64, 64)

    state = str(tmp_path / "two-step00000001-state")
    resumed = train(toy_lora, own, tmp_path, 2, "--output_name", "resumed", "--resume", state)
    assert all(torch.equal(tensor, whole[key]) for key, tensor in load_file(resumed).items())

    assert main(["check-lora", str(first)]) == 0
    assert "base: toy_v1" in capfd.readouterr().out

    merged = tmp_path / "merged.safetensors"
    asked = ["--toy_model", str(toy), "--save_to", str(merged), "--models", str(first), "--ratios", "1"]
    assert main(["merge", "toy", *asked]) == 0
    change = load_file(merged)["toy_in.weight"] - load_file(toy)["toy_in.weight"]
    assert float(change.norm()) > 0.01

    size = ["--width", "64", "--height", "64", "--steps", "2", "--seed", "1", "--prompt", "cat"]
    images = []
    for number, made_of in enumerate((base, [*base, "--lora_weights", str(first)], [*base[:1], str(merged)])):
        folder = tmp_path / f"images {number}"
        assert main(["generate", "toy", *made_of, *size, "--output_dir", str(folder), "--dtype", "fp32"]) == 0
        (path,) = folder.glob("*.png")
        with Image.open(path) as image:
            images.append(np.asarray(image).astype(int))
    assert np.abs(images[0] - images[1]).max() > 0
    assert np.abs(images[2] - images[1]).max() <= 1


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        (["--min_snr_gamma", "5"], "--min_snr_gamma has no effect here: it weighs the loss of noise"),
        (["--deepspeed"], "--deepspeed is not supported yet; leave it out"),
    ],
)
def test_its_options_are_checked_like_ours(
    option: list[str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "toy", "lora", *option, "--output_dir", str(tmp_path)]) == 2
    assert said in error_of(capfd.readouterr().err)


def test_a_family_that_nobody_brings_is_named_with_those_that_there_are(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", "tool", "lora"]) == 2
    assert "known: flux lora" in error_of(capfd.readouterr().err)


def draw(model: tiny.TinyFlux, folder: Path, *options: object) -> np.ndarray:
    """Return the image that the options ask for."""
    before = set(folder.glob("*.png"))
    text = "--width 32 --height 32 --steps 2 --seed 7 --prompt cat --dtype fp32"
    places = [*model.generation_arguments, "--output_dir", str(folder)]
    assert script("flux_minimal_inference", [*places, *text.split(), *map(str, options)]) == 0
    (path,) = set(folder.glob("*.png")) - before
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


@pytest.mark.usefixtures("_package")
def test_the_same_kind_adapts_a_unet(tmp_path: Path) -> None:
    sd = tiny.sd(tmp_path / "sd")
    options = ["--output_name", "sd", "--network_module", "scale", "--network_train_unet_only"]
    found = load_file(train(["train", "sd", "lora"], sd.arguments, tmp_path, 2, *options))
    assert all(key.startswith("scale_unet_") for key in found)
    assert sum(bool(tensor.any()) for tensor in found.values()) == len(found)


@pytest.mark.usefixtures("_package")
@pytest.mark.parametrize(
    ("network", "said"),
    [
        ("scale strat=1", "--network_args strat is unknown; did you mean start?"),
        ("scale start=much", "--network_args start=much: give a number"),
        ("broken", "the package toy-broken offers broken (sfumato.adapters), which cannot be imported"),
    ],
)
def test_what_does_not_suit_is_one_line(
    network: str, said: str, model: tiny.TinyFlux, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.pictures(tmp_path / "data" / "1_cat", 1)
    name, *arguments = network.split()
    places = [
        "--train_data_dir",
        str(tmp_path / "data"),
        "--output_dir",
        str(tmp_path),
        "--max_train_steps=1",
    ]
    own = ["--network_module", name, *(["--network_args", *arguments] if arguments else [])]
    assert script("flux_train_network", [*model.arguments, *places, "--resolution=64", *own]) == 2
    assert said in error_of(capfd.readouterr().err)
