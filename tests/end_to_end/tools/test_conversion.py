"""Whole models written in other layouts: nothing changes but where their tensors lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.checkpoints.header import read_header
from sfumato.cli.main import main, script
from sfumato.models.interface.family import DENOISER
from tests import tiny
from tests.pipelines import flux_weights

SCRIPT = "tools/convert_diffusers20_original_sd"
KINDS = ("sd1", "sd2", "sdxl")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "sd1": tiny.sd(folder / "sd1").path,
        "sd2": tiny.sd(folder / "sd2", v2=True, dtype=torch.float16).path,
        "sdxl": tiny.sdxl(folder / "sdxl", dtype=torch.bfloat16).path,
    }


@pytest.fixture(scope="module")
def folders(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("folders")
    for kind, path in models.items():
        assert convert(path, out / kind, "--use_safetensors") == 0
    return {kind: out / kind for kind in models}


def convert(source: Path, target: Path, *options: str) -> int:
    return script(SCRIPT, [*options, str(source), str(target)])


def used(path: Path) -> dict[str, torch.Tensor]:
    """Return what a checkpoint's models are made of: folders do not keep what nothing uses."""
    weights = load_file(path)
    is_2 = any(name.startswith("cond_stage_model.model.") for name in weights)
    unused = ("betas", "logit_scale", *(("text_projection", "transformer.resblocks.2.") if is_2 else ()))
    return {name: value for name, value in weights.items() if not any(word in name for word in unused)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_comes_back_from_a_folder_bit_for_bit(
    kind: str, models: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    assert convert(folders[kind], tmp_path / "back.safetensors") == 0
    before, after = used(models[kind]), load_file(tmp_path / "back.safetensors")
    assert before.keys() <= after.keys()
    for name, value in before.items():
        assert after[name].dtype == value.dtype, name
        assert torch.equal(after[name], value), name
    # The names are those of the published file, but for tables that only its first training needed.
    assert load_file(models[kind]).keys() - {"betas"} == after.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_opens_the_folder_and_finds_the_weights_that_its_own_conversion_makes(
    kind: str, models: dict[str, Path], folders: dict[str, Path]
) -> None:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    from tests.pipelines import pipeline_from

    opened: Any = DiffusionPipeline.from_pretrained(folders[kind])
    expected = pipeline_from(models[kind], kind, models[kind].parent / "tokenizers")
    assert type(opened) is type(expected)
    parts = ["unet", "vae", "text_encoder", *(["text_encoder_2"] if kind == "sdxl" else [])]
    for part in parts:
        found, wanted = getattr(opened, part).state_dict(), getattr(expected, part).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].float(), wanted[name]) for name in wanted), part
    wanted = "v_prediction" if kind == "sd2" else "epsilon"
    assert opened.scheduler.config.prediction_type == wanted
    assert opened.tokenizer("a cat").input_ids == expected.tokenizer("a cat").input_ids


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_rewritten_as_a_file_keeps_every_tensor(
    kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    assert convert(models[kind], tmp_path / "same.safetensors") == 0
    before, after = load_file(models[kind]), load_file(tmp_path / "same.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        (["--fp16"], torch.float16),
        (["--bf16"], torch.bfloat16),
        (["--float"], torch.float32),
        (["--fp16", "--save_precision_as", "bf16"], torch.bfloat16),
    ],
)
def test_precision_options_cast_files_and_folders(
    options: list[str], dtype: torch.dtype, models: dict[str, Path], tmp_path: Path
) -> None:
    assert convert(models["sd1"], tmp_path / "a.safetensors", *options, "--v1") == 0
    assert convert(models["sd1"], tmp_path / "a", *options, "--use_safetensors") == 0
    before, after = used(models["sd1"]), load_file(tmp_path / "a.safetensors")
    for name, value in before.items():
        expected = value.to(dtype) if value.is_floating_point() else value
        assert torch.equal(after[name], expected), name
    unet = load_file(tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in unet.values()} == {dtype}


def test_pickled_files_count_their_epochs_and_steps_on(tmp_path: Path) -> None:
    model = tiny.sd(tmp_path / "model", suffix=".ckpt")
    assert convert(model.path, tmp_path / "new.ckpt", "--epoch", "2", "--global_step", "50") == 0
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (5, 750)
    before = torch.load(model.path, weights_only=True)["state_dict"]
    assert all(torch.equal(content["state_dict"][name], value) for name, value in before.items())


def test_folders_are_pickled_unless_safetensors_are_asked_for_and_read_again(
    models: dict[str, Path], tmp_path: Path
) -> None:
    assert convert(models["sd1"], tmp_path / "folder") == 0
    assert (tmp_path / "folder" / "unet" / "diffusion_pytorch_model.bin").exists()
    assert convert(tmp_path / "folder", tmp_path / "back.safetensors") == 0
    after = load_file(tmp_path / "back.safetensors")
    assert all(torch.equal(after[name], value) for name, value in used(models["sd1"]).items())


def test_metadata_is_kept_without_hashes_and_added_to(models: dict[str, Path], tmp_path: Path) -> None:
    kept = {"modelspec.title": "old", "modelspec.author": "me", "modelspec.hash_sha256": "0x1"}
    source = tmp_path / "titled.safetensors"
    save_file(load_file(models["sd1"]), source, kept)
    given = json.dumps({"modelspec.title": "new", "count": 3})
    assert convert(source, tmp_path / "a.safetensors", "--metadata", given) == 0
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"modelspec.title": "new", "modelspec.author": "me", "count": "3"}


def test_a_variant_of_a_folder_is_read(
    models: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders["sd2"], folder)
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    halved = {name: value / 2 for name, value in load_file(plain).items()}
    save_file(halved, plain.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert convert(folder, tmp_path / "a.safetensors", "--variant", "fp16") == 0
    before, after = load_file(models["sd2"]), load_file(tmp_path / "a.safetensors")
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(after[name], before[name] / 2)
    name = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(after[name], before[name])


def test_a_folder_of_version_2_with_convolutions_around_transformers_is_written_as_published(
    models: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(folders["sd2"], folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    projections = [name for name in weights if name.endswith(("proj_in.weight", "proj_out.weight"))]
    assert projections
    save_file(weights | {name: weights[name][..., None, None] for name in projections}, file)
    assert convert(folder, tmp_path / "a.safetensors", "--v2") == 0
    before, after = used(models["sd2"]), load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_reference_model_gives_scheduler_and_tokenizer(
    models: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    source = tmp_path / "alone.safetensors"  # no tokenizers beside it
    source.symlink_to(models["sd1"])
    assert convert(source, tmp_path / "a", "--reference_model", str(folders["sd2"])) == 0
    for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (folders["sd2"] / name).read_bytes()


def test_a_folder_keeps_its_own_scheduler(folders: dict[str, Path], tmp_path: Path) -> None:
    assert convert(folders["sdxl"], tmp_path / "again", "--use_safetensors", "--fp16") == 0
    for name in ("scheduler/scheduler_config.json", "model_index.json", "unet/config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folders["sdxl"] / name).read_bytes()


def test_a_folder_is_replaced_only_when_the_new_one_is_complete(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfumato.models.components.stable_diffusion import pipeline_folder

    target = tmp_path / "folder"
    assert convert(models["sd1"], target, "--use_safetensors") == 0
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline_folder, "write_settings", fail)
    assert convert(models["sd1"], target, "--use_safetensors", "--fp16") == 2
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "x"], "nowhere, which does not exist"),
        (["{sd1}", "x", "--v2"], "is Stable Diffusion 1; leave it out"),
        (["{sdxl}", "x", "--v1"], "which is SDXL"),
        (["{sd1}", "x", "--v1", "--v2"], "--v1 excludes --v2"),
        (["{sd1}", "x.safetensors", "--metadata", "{{"], "which is not JSON"),
        (["{sd1}", "x.safetensors", "--metadata", "[1]"], "give a JSON object"),
        (["{sd1}", "x", "--reference_model", "nowhere"], "--reference_model is nowhere"),
        (["{folder}", "x.safetensors", "--variant", "fp8"], "--variant is fp8"),
        (["{folder}/vae", "x"], "has no folder unet"),
        (["{lora}", "x"], "it seems to be a LoRA"),
        (["{sd1}"], "model_to_save"),
        (["{sd1}", "x", "--save_precision_as", "no"], "invalid choice"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    models: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file({"lora_unet_a.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    places = {**models, "folder": folders["sd1"], "lora": tmp_path / "lora.safetensors"}
    filled = [text.format(**places) for text in arguments]
    assert script(SCRIPT, filled) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "x").exists()


def test_the_switch_for_linear_projections_says_that_it_changes_nothing(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [str(models["sd2"]), str(tmp_path / "x"), "--unet_use_linear_projection", "--use_safetensors"]
    assert main(["convert", *argv]) == 0
    assert "--unet_use_linear_projection has no effect here" in capsys.readouterr().err
    assert json.loads((tmp_path / "x" / "unet" / "config.json").read_text())["use_linear_projection"]


def test_weights_stay_in_the_mapped_file_until_they_are_written(models: dict[str, Path]) -> None:
    from sfumato.models.registry.whole_models import open_base

    unet = open_base(models["sd2"], "it").checkpoint.load(DENOISER, None, torch.device("cpu"))
    tensors = read_header(models["sd2"]).tensors
    first, last = (tensors[f"model.diffusion_model.{n}.weight"] for n in ("input_blocks.0.0", "out.2"))
    weights = unet.state_dict()
    distance = weights["conv_out.weight"].data_ptr() - weights["conv_in.weight"].data_ptr()
    assert distance == last.start - first.start


def test_a_denoiser_that_is_a_file_of_its_own_goes_to_diffusers_and_back_bit_for_bit(tmp_path: Path) -> None:
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    model = tiny.flux(tmp_path / "model")
    weights = load_file(model.transformer)
    assert main(["convert", str(model.transformer), str(tmp_path / "folder")]) == 0
    opened: Any = FluxTransformer2DModel.from_pretrained(tmp_path / "folder", subfolder="transformer")
    state = opened.state_dict()
    for name, value in flux_weights(weights).items():
        assert torch.equal(state[name].to(value.dtype), value), name
    out = tmp_path / "back.safetensors"
    argv = ["--diffusers_path", str(tmp_path / "folder"), "--save_to", str(out)]
    assert script("tools/convert_diffusers_to_flux", argv) == 0
    back = load_file(out)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], value) for name, value in weights.items())
    assert {value.dtype for value in back.values()} == {torch.bfloat16}


def test_one_of_diffusers_shards_is_as_good_as_the_folder_and_the_format_is_as_asked(tmp_path: Path) -> None:
    weights = load_file(tiny.flux(tmp_path / "model").transformer)
    theirs = {name: value.contiguous() for name, value in flux_weights(weights).items()}
    names, folder = sorted(theirs), tmp_path / "folder" / "transformer"
    folder.mkdir(parents=True)
    files = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for file, half in zip(files, halves, strict=True):
        save_file({name: theirs[name] for name in half}, folder / file)
    index = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    for source in (tmp_path / "folder", folder, folder / files[0]):
        out = tmp_path / "out.safetensors"
        argv = ["--diffusers_path", str(source), "--save_to", str(out), "--save_precision", "fp8"]
        assert script("tools/convert_diffusers_to_flux", argv) == 0
        found = load_file(out)
        assert {value.dtype for value in found.values()} == {torch.float8_e4m3fn}
        assert found.keys() == weights.keys()


def test_a_denoiser_is_not_asked_which_stable_diffusion_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.flux(tmp_path / "model").transformer
    assert main(["convert", str(model), str(tmp_path / "out"), "--v2"]) == 2
    assert "--v2 is about Stable Diffusion" in capsys.readouterr().err
    assert main(["convert", str(model), str(tmp_path / "out.ckpt")]) == 2
    assert "is no name for a FLUX.1 transformer; end it in .safetensors" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_tool_for_one_model_takes_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out = tiny.sd(tmp_path / "model").path, tmp_path / "out.safetensors"
    argv = ["--diffusers_path", str(model), "--save_to", str(out)]
    assert script("tools/convert_diffusers_to_flux", argv) == 2
    assert f"--diffusers_path is {model}, another model; use sfumato convert" in capsys.readouterr().err
    assert not out.exists()
