"""`convert-lora --for` writes the form of which a program loads most, and the change stays the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.files.programs.told import PROGRAMS
from sfumato.checkpoints.header import read_header
from sfumato.cli.main import main
from tests.adapters.files.programs import published as p
from tests.runs import refusal

WIDTH = 64


def made(shapes: p.Shapes) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    drawn = {key: torch.randn(shape, generator=rng) for key, shape in shapes.items()}
    return {key: torch.tensor(1.0) if key.endswith(".alpha") else tensor for key, tensor in drawn.items()}


def whole(folder: Path, shapes: p.Shapes, program: str, *options: str) -> dict[str, Tensor]:
    """Return the tensors of a file that was rewritten for a program."""
    source, target = folder / "source.safetensors", folder / "target.safetensors"
    save_file(made(shapes), source)
    argv = ["convert-lora", "--src_path", str(source), "--dst_path", str(target), "--for", program, *options]
    assert main(argv) == 0
    return load_file(target)


def blocks(leaves: p.Leaves) -> p.Shapes:
    """Return layers of the right width to be told as FLUX.1's, none of them fused."""
    names = [f"double_blocks.{n}.{name}" for n in (0, 1) for name in ("img_attn.proj", "txt_attn.proj")]
    return p.of([p.Layer(name, name, (WIDTH, WIDTH)) for name in names], leaves, "lora_unet_")


def changes(path: Path) -> dict[str, Tensor]:
    """Return the product of each LoRA, scaled, by its layer's name."""
    found = {}
    for name, own in read_adapter(path).items():
        scale = float(own["alpha"]) / own["lora_down.weight"].shape[0]
        found[name] = scale * own["lora_up.weight"].flatten(1) @ own["lora_down.weight"].flatten(1)
    return found


@pytest.mark.parametrize("program", ["comfyui", "diffusers", "sd-scripts", "invokeai"])
def test_a_lora_is_loaded_wholly_and_changes_the_same(program: str, tmp_path: Path) -> None:
    tensors = whole(tmp_path, blocks(p.lora), program)
    judge = next(judge for name, judge in PROGRAMS.items() if name.lower() == program)
    verdict = judge({key: tuple(tensor.shape) for key, tensor in tensors.items()})
    assert verdict is not None
    assert verdict.loaded == tensors.keys()
    before, after = changes(tmp_path / "source.safetensors"), changes(tmp_path / "target.safetensors")
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name])


def test_settings_of_the_source_do_not_scale_what_was_scaled_already(tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    layer = p.Layer("", "transformer_blocks.0.attn.to_out.0", (WIDTH, WIDTH))
    halves = p.named(".lora_A.weight", ".lora_B.weight", p.without_alpha(p.lora))
    tensors = made(p.of([layer], halves, "transformer.", theirs=True, flat=False))
    settings = json.dumps({"transformer.r": p.RANK, "transformer.lora_alpha": 4 * p.RANK})
    save_file(tensors, source, {"lora_adapter_metadata": settings, "ss_output_name": "mine"})
    for program in ("comfyui", "diffusers"):
        target = tmp_path / f"{program}.safetensors"
        argv = ["--src_path", str(source), "--dst_path", str(target), "--for", program]
        assert main(["convert-lora", *argv]) == 0
        torch.testing.assert_close(changes(target), changes(source))
        metadata = read_header(target).metadata
        assert metadata["ss_output_name"] == "mine"
        assert "lora_adapter_metadata" not in metadata


def test_new_words_stay_unless_the_program_would_refuse_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    word = {"bundle_emb.cat.clip_l": (2, WIDTH)}
    assert "bundle_emb.cat.clip_l" in whole(tmp_path, blocks(p.lora) | word, "comfyui")
    assert "bundle_emb.cat.clip_l" not in whole(tmp_path, blocks(p.lora) | word, "diffusers")
    assert "1 embedding of new words left out" in capfd.readouterr().err
    source, target = tmp_path / "source.safetensors", tmp_path / "resized.safetensors"
    argv = ["--model", str(source), "--save_to", str(target), "--new_rank", "1"]
    assert main(["resize-lora", *argv]) == 0
    assert "bundle_emb.cat.clip_l" in load_file(target)


@pytest.mark.parametrize("tool", [["merge", "flux"], ["merge-svd"]], ids=" ".join)
def test_merged_adapters_keep_the_words_of_all(
    tool: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files, out = [tmp_path / f"{name}.safetensors" for name in "ab"], tmp_path / "merged.safetensors"
    for number, (file, words) in enumerate(zip(files, (["cat"], ["cat", "v1.5"]), strict=True)):
        own = {f"bundle_emb.{word}.clip_l": torch.full((2, WIDTH), float(number)) for word in words}
        save_file(made(blocks(p.lora)) | own, file)
    argv = ["--models", *map(str, files), "--ratios", "0.5", "0.5", "--save_to", str(out)]
    assert main([*tool, *argv]) == 0
    words = {key: float(value.mean()) for key, value in load_file(out).items() if "bundle_emb" in key}
    assert words == {"bundle_emb.cat.clip_l": 0.0, "bundle_emb.v1.5.clip_l": 1.0}
    assert "its 'cat' is left out, for another adapter has that word" in capfd.readouterr().err


def test_dora_reaches_diffusers_as_magnitudes_of_its_own(tmp_path: Path) -> None:
    tensors = whole(tmp_path, blocks(p.plus(p.lora, ".dora_scale")), "diffusers")
    magnitudes = {key: tensor for key, tensor in tensors.items() if key.endswith(".lora_magnitude_vector")}
    assert len(magnitudes) == 4
    assert all(key.startswith("transformer.transformer_blocks.") for key in tensors)
    before = load_file(tmp_path / "source.safetensors")
    own = "lora_unet_double_blocks_0_img_attn_proj.dora_scale"
    key = "transformer.transformer_blocks.0.attn.to_out.0.lora_magnitude_vector"
    assert torch.equal(magnitudes[key], before[own].flatten())


def test_three_factors_become_two_where_three_are_refused(tmp_path: Path) -> None:
    layer = next(layer for layer in p.inner("sd") if layer.is_kernel)
    shapes = p.of([layer], p.tucker, "lora_unet_", theirs=True)
    down, up, _ = (key for key in p.of([layer], p.lora, "lora_unet_", theirs=True))
    shapes[down] = (p.RANK, layer.shape[1], 1, 1)
    tensors = whole(tmp_path, shapes, "diffusers")
    before = load_file(tmp_path / "source.safetensors")
    core = next(tensor for key, tensor in before.items() if key.endswith("lora_mid.weight"))
    expected = torch.einsum("oa,abhw,bi->oihw", before[up].flatten(1), core, before[down].flatten(1))
    found = torch.einsum("oa,aihw->oihw", tensors[up].flatten(1), tensors[down])
    assert not any(key.endswith("lora_mid.weight") for key in tensors)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_t5_has_another_number_for_invokeai(tmp_path: Path) -> None:
    shapes = blocks(p.lora) | p.of(p.t5(), p.lora, "lora_te3_")
    tensors = whole(tmp_path, shapes, "invokeai")
    assert len(tensors) == len(shapes)
    assert {key[:9] for key in tensors if "_te" in key} == {"lora_te2_"}


def test_layers_that_a_program_leaves_out_are_an_error_unless_that_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shapes = blocks(p.lora) | p.of(p.t5(), p.lora, "lora_te3_")
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    save_file(made(shapes), source)
    argv = ["convert-lora", "--src_path", str(source), "--dst_path", str(target), "--for", "diffusers"]
    assert main(argv) == 2
    assert "14 of 18 layers" in refusal(capfd)
    assert not target.exists()
    assert main([*argv, "--allow_partial"]) == 0
    assert not any("te3" in key or "text_encoder_2" in key for key in load_file(target))


def test_a_kind_that_a_program_does_not_know_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source.safetensors"
    save_file(made(blocks(p.loha)), source)
    out = str(tmp_path / "x.safetensors")
    paths = ["convert-lora", "--src_path", str(source), "--dst_path", out]
    assert main([*paths, "--for", "diffusers"]) == 2
    assert "diffusers loads nothing of this kind of adapter" in refusal(capfd)
    assert main([*paths, "--for", "comfyui", "--src", "sd-scripts", "--dst", "ai-toolkit"]) == 2
    assert "--for" in refusal(capfd)
