"""The tools on files of Stable Diffusion 3, whose text encoders lie in the model's file or beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.checkpoints.header import read_header
from sfumato.cli.main import main, script
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.interface.family import DENOISER
from tests import tiny
from tests.runs import others_slow

CPU = torch.device("cpu")
FORMS = ("medium", "5-large", "5-medium")
ENCODERS = ("clip_l", "clip_g", "t5xxl")
EXTRA = {"clip_l": "text_projection.weight"}
"""What a folder holds for transformers, though the file had not: the identity."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.TinySd3]:
    """Return models with everything in one file, by their forms."""
    folder = tmp_path_factory.mktemp("whole")
    return {form: tiny.sd3(folder / form, form=form, hidden=64) for form in FORMS}


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinySd3:
    return tiny.sd3(tmp_path_factory.mktemp("apart"), form="5-medium", hidden=64, in_one=False)


def lora(path: Path, family: Sd3Family, seed: int = 0) -> Path:
    """Write a LoRA of every layer of every part that is adapted unasked, with numbers everywhere."""
    parts = (*family.text_outputs, DENOISER)
    targets = [t for p in parts for t in family.adapter_targets(p, family.load(p, torch.float32, CPU))]
    network = AdapterNetwork([Lora(target, 2, 1.0) for target in targets if target.is_default])
    rng = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=rng)
    network.save(path, None, {"ss_base_model_version": family.identity.base_version})
    return path


def assert_merged(base: Sd3Family, merged: Sd3Family, path: Path, ratio: float) -> None:
    """Compare each part with what the adapter makes of it in memory."""
    for part in (*base.text_outputs, DENOISER):
        model = base.load(part, torch.float32, CPU)
        plain = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        network_from_file(path, list(base.adapter_targets(part, model))).merge(ratio)
        found, wanted = merged.load(part, torch.float32, CPU).state_dict(), model.state_dict()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
        assert sum(not torch.equal(wanted[name], plain[name]) for name in wanted) > 5


def below(path: Path, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in load_file(path).items() if n.startswith(prefix)}


@pytest.mark.parametrize("form", others_slow(FORMS, ["5-medium"]))
def test_adapters_are_merged_into_everything_that_one_file_holds(
    form: str, whole: dict[str, tiny.TinySd3], tmp_path: Path
) -> None:
    base, out = Sd3Family({DENOISER: whole[form].path}), tmp_path / "merged.safetensors"
    path = lora(tmp_path / "a.safetensors", base)
    argv = ["--sd3_model", str(whole[form].path), "--save_to", str(out), "--models", str(path)]
    assert main(["merge", "sd3", *argv, "--ratios", "0.7"]) == 0
    assert load_file(out).keys() == load_file(whole[form].path).keys()
    assert_merged(base, Sd3Family({DENOISER: out}), path, 0.7)
    told = read_header(out).metadata
    assert told["modelspec.architecture"] == f"stable-diffusion-3-{form}"


def test_adapters_are_merged_into_files_of_their_own_and_with_each_other(
    apart: tiny.TinySd3, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = Sd3Family({DENOISER: apart.path, **apart.encoders})
    loras = [str(lora(tmp_path / f"{seed}.safetensors", base, seed)) for seed in (0, 1)]
    places = {part: str(tmp_path / f"merged_{part}.safetensors") for part in (DENOISER, *ENCODERS)}
    argv = ["--sd3_model", str(apart.path), "--save_to", places[DENOISER], "--models", loras[0]]
    for part, file in apart.encoders.items():
        argv += [f"--{part}", str(file), f"--{part}_save_to", places[part]]
    assert main(["merge", "sd3", *argv, "--ratios", "1"]) == 0
    merged = Sd3Family({part: Path(place) for part, place in places.items()})
    assert_merged(base, merged, Path(loras[0]), 1.0)
    assert main(["merge", "sd3", *argv[:-1], loras[1], "--ratios", "1", "--clip_g_save_to", ""]) == 2
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "error: --clip_g is given, but not --clip_g_save_to, the file to write"
    both = tmp_path / "both.safetensors"
    argv = ["--models", *loras, "--ratios", "1", "0.5", "--concat", "--save_to", str(both)]
    assert main(["merge", "sd3", *argv]) == 0
    assert load_file(both).keys() == load_file(Path(loras[0])).keys()


@pytest.mark.parametrize("form", others_slow(FORMS, ["medium"]))
def test_what_was_merged_is_extracted_and_resized(
    form: str, whole: dict[str, tiny.TinySd3], tmp_path: Path
) -> None:
    base = Sd3Family({DENOISER: whole[form].path})
    path = lora(tmp_path / "a.safetensors", base)
    tuned, found, small = (tmp_path / f"{name}.safetensors" for name in ("tuned", "found", "small"))
    argv = ["--sd3_model", str(whole[form].path), "--save_to", str(tuned), "--models", str(path)]
    assert main(["merge", "sd3", *argv, "--ratios", "1"]) == 0
    models = ["--model_org", str(whole[form].path), "--model_tuned", str(tuned)]
    assert main(["extract-lora", *models, "--save_to", str(found), "--dim", "2"]) == 0
    before, after = products(path), products(found)
    assert before.keys() == after.keys()
    for name, product in before.items():
        assert (after[name] - product).norm() < 1e-3 * product.norm(), name
    told = read_header(found).metadata
    assert told["ss_network_module"] == "networks.lora_sd3"
    assert told["ss_base_model_version"] == base.identity.base_version
    assert main(["resize-lora", "--model", str(found), "--save_to", str(small), "--new_rank", "1"]) == 0
    assert {t.shape[0] for n, t in load_file(small).items() if "lora_down" in n} == {1}


def test_models_with_and_without_text_encoders_are_compared_in_what_both_hold(
    whole: dict[str, tiny.TinySd3], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare, found = tmp_path / "bare.safetensors", tmp_path / "found.safetensors"
    rng = torch.Generator().manual_seed(0)
    tensors = {n: t for n, t in load_file(whole["medium"].path).items() if not n.startswith("text_enc")}
    name = "model.diffusion_model.joint_blocks.1.x_block.attn.qkv.weight"
    tensors[name] = tensors[name] + torch.randn(192, 1, generator=rng) @ torch.randn(1, 64, generator=rng)
    save_file(tensors, bare)
    models = ["--model_org", str(whole["medium"].path), "--model_tuned", str(bare)]
    assert main(["extract-lora", *models, "--save_to", str(found), "--dim", "1"]) == 0
    assert {name.partition(".")[0] for name in load_file(found)} == {
        "lora_unet_joint_blocks_1_x_block_attn_qkv"
    }
    assert "clip_l, clip_g, t5xxl" in capfd.readouterr().err


def products(path: Path) -> dict[str, Tensor]:
    tensors, found = load_file(path), {}
    for name in {name.partition(".")[0] for name in tensors}:
        up, down = (tensors[f"{name}.lora_{way}.weight"].flatten(1) for way in ("up", "down"))
        found[name] = tensors[f"{name}.alpha"] / len(down) * up @ down
    return found


@pytest.mark.parametrize("form", others_slow(FORMS, ["5-medium"]))
def test_a_file_comes_back_from_a_folder_bit_for_bit(
    form: str, whole: dict[str, tiny.TinySd3], tmp_path: Path
) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.safetensors"
    for source, target in ((whole[form].path, folder), (folder, back)):
        assert main(["convert", str(source), str(target)]) == 0
    before, after = load_file(whole[form].path), load_file(back)
    assert after.keys() - before.keys() == {f"text_encoders.clip_l.transformer.{EXTRA['clip_l']}"}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert main(["convert", str(whole[form].path), str(back), "--bf16"]) == 0
    assert {tensor.dtype for tensor in load_file(back).values()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore")
def test_diffusers_opens_the_folder_as_a_pipeline(whole: dict[str, tiny.TinySd3], tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline

    assert main(["convert", str(whole["5-medium"].path), str(tmp_path / "folder"), "--bf16"]) == 0
    opened = StableDiffusion3Pipeline.from_pretrained(tmp_path / "folder", torch_dtype=torch.bfloat16)
    for number, part in enumerate(ENCODERS):
        prefix = f"text_encoders.{part}.transformer."
        encoder = getattr(opened, f"text_encoder_{number + 1}" if number else "text_encoder")
        found = {name.removeprefix("text_model."): t for name, t in encoder.state_dict().items()}
        for name, tensor in below(whole["5-medium"].path, prefix).items():
            assert torch.equal(found[name.removeprefix("text_model.")], tensor.bfloat16()), name
    assert opened.vae.config.shift_factor == 0.0609
    assert opened.scheduler.config.shift == 3.0
    opened.set_progress_bar_config(disable=True)
    small = {"width": 32, "height": 32, "num_inference_steps": 1, "max_sequence_length": 16}
    assert opened("a cat", **small, output_type="np").images.shape == (1, 32, 32, 3)


def test_a_model_without_text_encoders_becomes_a_folder_and_comes_back(
    apart: tiny.TinySd3, tmp_path: Path
) -> None:
    folder, back = tmp_path / "folder", tmp_path / "back.safetensors"
    for source, target in ((apart.path, folder), (folder, back)):
        assert main(["convert", str(source), str(target)]) == 0
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"transformer", "vae", "scheduler"}
    before, after = load_file(apart.path), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_parts_are_joined_in_one_file(apart: tiny.TinySd3, tmp_path: Path) -> None:
    bare, vae, out = (tmp_path / f"{name}.safetensors" for name in ("dit", "vae", "out"))
    save_file(below(apart.path, "model.diffusion_model."), bare, {"made_by": "me", "sshs_model_hash": "0"})
    save_file(below(apart.path, "first_stage_model."), vae)
    argv = ["--dit", str(bare), "--vae", str(vae), "--output", str(out), "--save_precision", "fp16"]
    argv += [text for part, file in apart.encoders.items() for text in (f"--{part}", str(file))]
    assert script("tools/merge_sd3_safetensors", argv) == 0
    wanted = load_file(apart.path)
    for part, file in apart.encoders.items():
        wanted |= {f"text_encoders.{part}.transformer.{name}": t for name, t in load_file(file).items()}
    found = load_file(out)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor.half()) for name, tensor in wanted.items())
    assert read_header(out).metadata == {"made_by": "me"}
    family = Sd3Family({DENOISER: out}, apart.tokenizers)
    family.check([DENOISER, "vae", *ENCODERS])


def test_an_autoencoder_in_diffusers_naming_is_joined_under_published_names(
    apart: tiny.TinySd3, tmp_path: Path
) -> None:
    folder, out = tmp_path / "folder", tmp_path / "out.safetensors"
    assert main(["convert", str(apart.path), str(folder)]) == 0
    argv = ["--dit", str(folder / "transformer"), "--vae", str(folder / "vae"), "--output", str(out)]
    assert main(["join-parts", *argv]) == 0
    before, after = load_file(apart.path), load_file(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_whole_models_are_merged_and_text_encoders_left_alone_on_request(
    whole: dict[str, tiny.TinySd3], tmp_path: Path
) -> None:
    other = tiny.sd3(tmp_path / "other", hidden=64, seed=5).path
    argv = ["--models", str(whole["medium"].path), str(other), "--ratios", "0.25", "0.75", "--unet_only"]
    assert script("tools/merge_models", [*argv, "--output", str(tmp_path / "out.safetensors")]) == 0
    one, two, found = (
        load_file(path) for path in (whole["medium"].path, other, tmp_path / "out.safetensors")
    )
    for name, tensor in one.items():
        is_denoiser = name.startswith("model.diffusion_model.")
        wanted = 0.25 * tensor + 0.75 * two[name] if is_denoiser else tensor
        torch.testing.assert_close(found[name], wanted, rtol=1e-5, atol=1e-6, msg=name)
