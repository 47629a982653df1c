"""Adapters merged into files: the model that is read back is the one that they would make live."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lokr import Lokr, shapes_for
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.checkpoints.header import read_header
from sfumato.cli.main import main, script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.registry.families import family_for
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from sfumato.tools.merging import adapter_merging
from tests import tiny
from tests.pipelines import flux_weights
from tests.runs import others_slow

CPU = torch.device("cpu")
RATIO = 0.7
MODELS = ["--models", "{a}", "--ratios", "1", "--flux_model", "{m}"]
Make = Callable[[AdapterTarget], AdapterLayer | None]


def lora(target: AdapterTarget) -> AdapterLayer:
    return Lora(target, 4, 2.0)


def loha(target: AdapterTarget) -> AdapterLayer:
    return Loha(target, 3, 1.5)


def lokr(target: AdapterTarget) -> AdapterLayer:
    return Lokr(target, shapes_for(target.module, 2, 4), 2.0)


def bound(family: str, model: Path, clip_l: str | None = None, t5xxl: str | None = None) -> Family:
    base = ModelConfig(pretrained_model_name_or_path=str(model), v2="sd2" in str(model))
    return family_for(Run("", family, [base, FluxOptions(clip_l=clip_l, t5xxl=t5xxl)]))


def adapter(path: Path, family: Family, make: Make = lora, seed: int = 0, every: int = 1) -> Path:
    """Write an adapter of every layer of every part, with numbers everywhere."""
    targets = [
        target
        for part in (*family.text_outputs, DENOISER)
        if family.source(part) is not None
        for target in family.adapter_targets(part, family.load(part, torch.float32, CPU))
    ]
    layers = [layer for layer in map(make, targets[::every]) if layer is not None]
    network = AdapterNetwork(layers)
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    network.save(
        path, None, {"ss_base_model_version": family.identity.base_version, "modelspec.title": path.stem}
    )
    return path


def expected(family: Family, part: str, *adapters: tuple[Path, float]) -> dict[str, Tensor]:
    """Return a part's weights with adapters merged into the loaded model."""
    model = family.load(part, torch.float32, CPU)
    for path, ratio in adapters:
        network_from_file(path, list(family.adapter_targets(part, model))).merge(ratio)
    return model.state_dict()


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[tiny.TinyFlux, Family]:
    files = tiny.flux(tmp_path_factory.mktemp("flux"))
    return files, bound("flux", files.transformer, clip_l=str(files.clip_l), t5xxl=str(files.t5xxl))


@pytest.mark.parametrize("make", [lora, loha, lokr])
def test_every_file_of_a_model_in_three_files_becomes_what_the_live_adapter_makes_it(
    make: Make, flux: tuple[tiny.TinyFlux, Family], tmp_path: Path
) -> None:
    files, family = flux
    path = adapter(tmp_path / "a.safetensors", family, make)
    argv = ["--flux_model", str(files.transformer), "--save_to", str(tmp_path / "model.safetensors")]
    argv += ["--clip_l", str(files.clip_l), "--clip_l_save_to", str(tmp_path / "clip.safetensors")]
    argv += ["--t5xxl", str(files.t5xxl), "--t5xxl_save_to", str(tmp_path / "t5.safetensors")]
    assert main(["merge", "flux", *argv, "--models", str(path), "--ratios", str(RATIO)]) == 0
    clip, t5 = str(tmp_path / "clip.safetensors"), str(tmp_path / "t5.safetensors")
    merged = bound("flux", tmp_path / "model.safetensors", clip_l=clip, t5xxl=t5)
    for part in (DENOISER, *family.text_outputs):
        found = merged.load(part, torch.float32, CPU).state_dict()
        assert_close(found, expected(family, part, (path, RATIO)))
        assert any(not torch.equal(found[name], value) for name, value in expected(family, part).items())


def test_layers_that_nothing_trains_are_merged_too(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path
) -> None:
    files, family = flux
    model = family.load(DENOISER, torch.float32, CPU)
    last, norm = "final_layer.adaLN_modulation.1", "double_blocks.0.img_attn.norm.query_norm"
    rows, columns = model.get_parameter("final_layer.linear.weight").shape
    wanted = {name: torch.randn(value.shape) for name, value in model.state_dict().items()}
    tensors = {
        "unet_final_layer_linear.lora_down.weight": torch.ones(2, columns),
        "unet_final_layer_linear.lora_up.weight": torch.ones(rows, 2),
        "unet_final_layer_adaLN_modulation_1.diff": wanted[f"{last}.weight"],
        "unet_final_layer_adaLN_modulation_1.diff_b": wanted[f"{last}.bias"],
        "unet_double_blocks_0_img_attn_norm_query_norm.set_weight": wanted[f"{norm}.scale"],
    }
    path, out = tmp_path / "a.safetensors", tmp_path / "out.safetensors"
    save_file({f"lora_{key}": value for key, value in tensors.items()}, path)
    argv = ["--flux_model", str(files.transformer), "--save_to", str(out), "--models", str(path)]
    assert main(["merge", "flux", *argv, "--ratios", "0.5"]) == 0
    changed = load_file(out)
    for name, value in load_file(files.transformer).items():
        change = {"final_layer.linear.weight": 1.0, f"{last}.weight": 0.5, f"{last}.bias": 0.5}.get(name, 0.0)
        expected = wanted[name] if name == f"{norm}.scale" else value.float()
        expected = expected + change * (1 if name == "final_layer.linear.weight" else wanted[name])
        torch.testing.assert_close(changed[name].float(), expected)
    live = Attachments(family, [AdapterFile(path, 0.5)], dtype=torch.float32, is_merged=True)
    live.check()
    live(DENOISER, model)
    assert_close({name: value.float() for name, value in changed.items()}, model.state_dict())
    save_file({"lora_unet_nowhere.diff": torch.ones(1)} | load_file(path), path)
    assert main(["merge", "flux", *argv, "--ratios", "0.5"]) == 2


def test_a_folder_of_diffusers_and_a_lora_of_its_names_merge_into_a_published_file(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path
) -> None:
    files, family = flux
    path = adapter(tmp_path / "a.safetensors", family)
    theirs = tmp_path / "theirs.safetensors"
    exchange = [
        "--src",
        "sd-scripts",
        "--dst",
        "ai-toolkit",
        "--src_path",
        str(path),
        "--dst_path",
        str(theirs),
    ]
    assert script("networks/convert_flux_lora", exchange) == 0
    (tmp_path / "model" / "transformer").mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in flux_weights(load_file(files.transformer)).items()},
        tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors",
    )
    out = tmp_path / "out.safetensors"
    argv = [
        "--flux_model",
        str(tmp_path / "model"),
        "--save_to",
        str(out),
        "--models",
        str(theirs),
        "--ratios",
        "1",
    ]
    assert script("networks/flux_merge_lora", [*argv, "--diffusers"]) == 0
    assert load_file(out).keys() == load_file(files.transformer).keys()
    assert_close(
        bound("flux", out).load(DENOISER, torch.float32, CPU).state_dict(),
        expected(family, DENOISER, (path, 1)),
    )


@pytest.mark.parametrize(
    ("as_folder", "kind"),
    others_slow(
        product([False, True], ["sd1", "sd2", "sdxl"]), [(False, "sd1"), (True, "sd2"), (True, "sdxl")]
    ),
)
def test_a_whole_checkpoint_becomes_what_live_adapters_make_it(
    kind: str, as_folder: bool, tmp_path: Path
) -> None:
    folder = tmp_path / kind
    model = (
        tiny.sdxl(folder, as_folder=as_folder)
        if kind == "sdxl"
        else tiny.sd(folder, v2=kind == "sd2", as_folder=as_folder)
    )
    name = kind.rstrip("12") if kind != "sdxl" else kind
    family = bound(name, model.path)
    first = adapter(tmp_path / "a.safetensors", family, lora)
    second = adapter(tmp_path / "b.safetensors", family, loha if kind == "sdxl" else lora, seed=1, every=3)
    out = tmp_path / f"{kind}.safetensors"
    tool = "networks/sdxl_merge_lora" if kind == "sdxl" else "networks/merge_lora"
    argv = ["--sd_model", str(model.path), "--save_to", str(out), *(["--v2"] if kind == "sd2" else [])]
    assert script(tool, [*argv, "--models", str(first), str(second), "--ratios", "0.7", "-0.4"]) == 0
    merged = bound(name, out)
    for part in (DENOISER, *family.text_outputs):
        found = merged.load(part, torch.float32, CPU).state_dict()
        assert_close(found, expected(family, part, (first, 0.7), (second, -0.4)))
    metadata = read_header(out).metadata
    assert metadata["modelspec.merged_from"] == f"{model.path.stem}, a, b"
    start = family.identity.architecture[
        : len("stable-diffusion-v2")
    ]  # files do not tell what version 2 predicts
    assert metadata["modelspec.architecture"].startswith(start)


def test_what_adapters_leave_alone_is_copied_bit_for_bit_and_the_format_is_as_asked(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path
) -> None:
    files, family = flux
    path = adapter(tmp_path / "a.safetensors", family, every=5)
    argv = ["--flux_model", str(files.transformer), "--models", str(path), "--ratios", "1"]
    for precision, dtype in (("bf16", torch.bfloat16), ("fp8", torch.float8_e4m3fn)):
        out = tmp_path / f"{precision}.safetensors"
        assert (
            script("networks/flux_merge_lora", [*argv, "--save_to", str(out), "--save_precision", precision])
            == 0
        )
        merged, before = load_file(out), load_file(files.transformer)
        assert {value.dtype for value in merged.values()} == {dtype}
        same = [name for name in before if torch.equal(merged[name].float(), before[name].to(dtype).float())]
        assert 0 < len(before) - len(same) < len(before) / 4


def test_block_weights_scale_the_change_of_each_block(tmp_path: Path) -> None:
    model = tiny.sdxl(tmp_path / "m")
    family = bound("sdxl", model.path)
    path = adapter(tmp_path / "a.safetensors", family)
    weights = [0.0] * 20
    weights[10] = 0.5  # MID
    argv = [
        "--sd_model",
        str(model.path),
        "--save_to",
        str(tmp_path / "o.safetensors"),
        "--models",
        str(path),
    ]
    assert script("networks/sdxl_merge_lora", [*argv, "--ratios", "2", "--lbws", json.dumps(weights)]) == 0
    found = bound("sdxl", tmp_path / "o.safetensors").load(DENOISER, torch.float32, CPU).state_dict()
    before, full = expected(family, DENOISER), expected(family, DENOISER, (path, 1.0))
    for name, value in found.items():
        torch.testing.assert_close(
            value, (full if name.startswith("mid_block") else before)[name], rtol=1e-5, atol=1e-5
        )


def test_a_merged_lora_tells_what_it_is_made_of(flux: tuple[tiny.TinyFlux, Family], tmp_path: Path) -> None:
    _, family = flux
    paths = [adapter(tmp_path / f"{name}.safetensors", family, seed=i) for i, name in enumerate("ab")]
    out = tmp_path / "out.safetensors"
    argv = ["--models", *map(str, paths), "--ratios", "0.5", "0.5", "--save_to", str(out)]
    assert script("networks/flux_merge_lora", [*argv, "--concat", "--shuffle"]) == 0
    metadata = read_header(out).metadata
    assert metadata["modelspec.merged_from"] == "a, b"
    assert metadata["modelspec.architecture"] == f"{family.identity.architecture}/lora"
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("8", "2.0")
    assert len(metadata["sshs_model_hash"]) == 64
    assert script("networks/flux_merge_lora", [*argv, "--no_metadata"]) == 0
    assert not any(key.startswith("modelspec.") for key in read_header(out).metadata)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--models", "{a}", "--ratios", "1", "0.5"],
            "--ratios has 2 numbers for 1 --models; give one for each",
        ),
        (
            ["--models", "{gone}", "--ratios", "1"],
            "--models names {gone}, which does not exist; check the path",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--flux_model", "{m}"],
            "--flux_model is given, but not --save_to",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--flux_model", "{m}", "--save_to", "{o}", "--concat"],
            "--concat is about merging adapters with each other",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--flux_model", "{clip}", "--save_to", "{o}"],
            "it seems to be a CLIP text encoder",
        ),
        (
            ["--models", "{sd}", "--ratios", "1", "--flux_model", "{m}", "--save_to", "{o}"],
            "fits no layer of this model",
        ),
        (
            ["--models", "{m}", "--ratios", "1", "--save_to", "{o}"],
            "{m}: it seems to be a FLUX.1 transformer",
        ),
        (
            ["--models", "{x}", "--ratios", "1", "--save_to", "{o}"],
            "{x} names its layers mine_unet_double ..., and not lora_unet_ ...; use another file",
        ),
        (
            ["--models", "{a}", "{h}", "--ratios", "1", "1", "--save_to", "{o}", "--concat"],
            "which is no plain LoRA; take svd_merge_lora",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--flux_model", "{m}", "--save_to", "{a}"],
            "the file to write is {a}, which is read, too, and would be lost; give another name",
        ),
        (
            ["--models", "{b}", "{a}", "--ratios", "1", "1", "--concat", "--save_to", "{a}"],
            "--save_to is {a}, which is read, too, and would be lost; give another name",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--save_to", "{folder}"],
            "--save_to is {folder}; end it in .safetensors, .pt or .ckpt",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--flux_model", "{m}", "--save_to", "{folder}"],
            "{folder} is no name for a merged model; end it in .safetensors",
        ),
        (
            [
                "--models",
                "{a}",
                "--ratios",
                "1",
                "--flux_model",
                "{m}",
                "--save_to",
                "{o}",
                "--clip_l",
                "{clip}",
                "--clip_l_save_to",
                "{o}",
            ],
            "{o} is named for two merged models; give each a name of its own",
        ),
        (
            ["--models", "{a}", "{b}", "--ratios", "1", "1", "--save_to", "{o}"],
            "add --concat, or take svd_merge_lora",
        ),
        (
            ["--models", "{a}", "--ratios", "1", "--save_to", "{o}", "--precision", "fp8"],
            "cannot be computed in",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line_and_nothing_is_written(
    options: list[str],
    message: str,
    flux: tuple[tiny.TinyFlux, Family],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files, family = flux
    names = {name: str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "h", "gone", "o", "sd", "x")}
    names |= {"m": str(files.transformer), "clip": str(files.clip_l), "folder": str(tmp_path)}
    adapter(Path(names["a"]), family)
    adapter(Path(names["b"]), family, lambda target: Lora(target, 3, 1.0))
    adapter(Path(names["h"]), family, loha)
    halves = {f"mine_unet_double.lora_{way}.weight": torch.ones(4, 4) for way in ("down", "up")}
    save_file(halves, names["x"])
    save_file(
        {
            f"lora_unet_mid_block_attentions_0_proj_in.{key}": torch.ones(4, 4)
            for key in ("lora_down.weight", "lora_up.weight")
        },
        names["sd"],
    )
    assert script("networks/flux_merge_lora", [text.format(**names) for text in options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message.format(**names) in error
    assert not Path(names["o"]).exists()


def test_a_model_in_pieces_is_merged_without_making_two_tensors_at_once(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, family = flux
    path = adapter(tmp_path / "a.safetensors", family)
    alive: list[int] = []
    made: list[weakref.ref[Tensor]] = []
    original = adapter_merging.changed

    def counted(*args: object) -> Tensor:
        alive.append(sum(ref() is not None for ref in made))
        value = original(*args)  # type: ignore[arg-type]
        made.append(weakref.ref(value))
        return value

    monkeypatch.setattr(adapter_merging, "changed", counted)
    argv = [
        "--flux_model",
        str(files.transformer),
        "--save_to",
        str(tmp_path / "o.safetensors"),
        "--precision",
        "float",
    ]
    assert script("networks/flux_merge_lora", [*argv, "--models", str(path), "--ratios", "1"]) == 0
    assert len(alive) > 20
    assert max(alive) <= 1


def test_the_older_script_merges_too(tmp_path: Path) -> None:
    model = tiny.sd(tmp_path / "m")
    path = adapter(tmp_path / "a.safetensors", bound("sd", model.path))
    argv = ["--models", str(path), "--ratios", "1"]
    for tool in ("merge_lora", "merge_lora_old"):
        out = tmp_path / f"{tool}.safetensors"
        assert script(f"networks/{tool}", [*argv, "--sd_model", str(model.path), "--save_to", str(out)]) == 0
    with (
        safe_open(tmp_path / "merge_lora.safetensors", "pt") as new,
        safe_open(tmp_path / "merge_lora_old.safetensors", "pt") as old,
    ):
        assert all(torch.equal(new.get_tensor(name), old.get_tensor(name)) for name in new.keys())  # noqa: SIM118


def products(path: Path) -> dict[str, Tensor]:
    """Return the change that each layer of a LoRA makes."""
    layers = read_adapter(path).items()
    return {
        name: own["lora_up.weight"]
        @ own["lora_down.weight"]
        * float(own["alpha"])
        / len(own["lora_down.weight"])
        for name, own in layers
    }


def with_alpha(source: Path, target: Path, alpha: float) -> Path:
    """Write a LoRA again with another alpha."""
    tensors = load_file(source)
    save_file({k: torch.tensor(alpha) if k.endswith(".alpha") else v for k, v in tensors.items()}, target)
    return target


def test_side_by_side_each_lora_acts_as_strongly_as_is_said(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, family = flux
    first = adapter(tmp_path / "a.safetensors", family, every=6)
    second = adapter(tmp_path / "b.safetensors", family, lambda t: Lora(t, 12, 5.0), seed=1, every=6)
    out = tmp_path / "out.safetensors"
    argv = ["--models", str(first), str(second), "--ratios", "0.8", "-1", "--concat", "--save_to", str(out)]
    assert main(["merge", "flux", *argv]) == 0
    said = capsys.readouterr().err
    assert f"{first} acts at 0.16: its ratio squared, shared by ranks" in said
    assert f"{second} acts at -0.75: its ratio squared, shared by ranks" in said
    one, other, both = products(first), products(second), products(out)
    for name, change in both.items():
        torch.testing.assert_close(change, 0.16 * one[name] - 0.75 * other[name], rtol=1e-4, atol=1e-6)


def test_an_alpha_of_0_is_off_and_a_negative_one_turns_the_change_round(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path
) -> None:
    _, family = flux
    plain = adapter(tmp_path / "a.safetensors", family, lambda t: Lora(t, 4, 4.0), every=6)
    zero = with_alpha(plain, tmp_path / "zero.safetensors", 0.0)
    minus = with_alpha(plain, tmp_path / "minus.safetensors", -1.0)
    out = tmp_path / "out.safetensors"
    # Halves are added up, so that cross terms stay; what is off leaves none.
    for paths, strength in (([zero, plain], 1.0), ([plain, minus], (1 - 0.5) * (1 + 0.5))):
        argv = ["--models", *map(str, paths), "--ratios", "1", "1", "--save_to", str(out)]
        assert main(["merge", "flux", *argv]) == 0
        for name, change in products(out).items():
            torch.testing.assert_close(change, strength * products(plain)[name], rtol=1e-4, atol=1e-6)
    argv = ["--src", "sd-scripts", "--dst", "ai-toolkit", "--src_path", str(zero), "--dst_path", str(out)]
    assert main(["convert-lora", *argv]) == 0
    assert not any(change.any() for change in products(out).values())


def test_what_is_for_another_model_or_of_no_effect_is_a_warning(
    flux: tuple[tiny.TinyFlux, Family], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, family = flux
    path = adapter(tmp_path / "a.safetensors", family, every=6)
    other = tmp_path / "b.safetensors"
    save_file(load_file(path), other, {"ss_base_model_version": "sd_v1"})
    argv = [
        "--models",
        str(path),
        str(other),
        "--ratios",
        "1",
        "1",
        "--save_to",
        str(tmp_path / "o.safetensors"),
    ]
    weights = json.dumps([1.0] * 26)
    assert main(["merge-svd", *argv, "--lbws", weights, weights]) == 0
    said = capsys.readouterr().err
    assert "the adapters are for different models (flux1, sd_v1); none will use all of it" in said
    assert "--lbws" not in said.partition("WARNING")[2]
    text_free = tmp_path / "unet.safetensors"
    save_file({key: value for key, value in load_file(path).items() if "unet" in key}, text_free)
    argv = ["--models", str(text_free), "--ratios", "1", "--save_to", str(tmp_path / "o.safetensors")]
    assert main(["merge-svd", *argv, "--lbws", weights]) == 0
    assert (
        f"--lbws has no effect on {text_free}: no layer lies in a block of a U-Net" in capsys.readouterr().err
    )


def test_a_whole_checkpoint_may_be_pickled(tmp_path: Path) -> None:
    model = tiny.sd(tmp_path / "m")
    path = adapter(tmp_path / "a.safetensors", bound("sd", model.path), every=9)
    argv = ["--models", str(path), "--ratios", "1", "--sd_model", str(model.path), "--save_precision", "fp16"]
    for suffix in ("safetensors", "ckpt"):
        assert script("networks/merge_lora", [*argv, "--save_to", str(tmp_path / f"o.{suffix}")]) == 0
    pickled = torch.load(tmp_path / "o.ckpt", weights_only=True)["state_dict"]
    plain = load_file(tmp_path / "o.safetensors")
    assert pickled.keys() == plain.keys()
    assert all(torch.equal(pickled[name], value) for name, value in plain.items())
