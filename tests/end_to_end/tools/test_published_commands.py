"""Commands that sd-scripts publishes for merging and converting FLUX.1 files run as they stand."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from tests import tiny

MERGE = (
    "networks/flux_merge_lora.py --flux_model flux1-dev.safetensors --save_to output.safetensors "
    "--models lora1.safetensors --ratios 2.0 --save_precision fp16 --loading_device cuda --working_device cpu"
)
ENCODERS = (
    " --clip_l clip_l.safetensors --clip_l_save_to merged_clip_l.safetensors "
    "--t5xxl t5xxl_fp16.safetensors --t5xxl_save_to merged_t5xxl.safetensors"
)
CONVERT_LORA = (
    "networks/convert_flux_lora.py --src sd-scripts --dst ai-toolkit --src_path lora1.safetensors "
    "--dst_path ai-toolkit_lora.safetensors"
)
CONVERT = (
    "tools/convert_diffusers_to_flux.py --diffusers_path folder --save_to flux1.safetensors "
    "--mem_eff_load_save --save_precision bf16"
)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    model = tiny.flux(tmp_path)
    model.t5xxl.rename(tmp_path / "t5xxl_fp16.safetensors")
    weight = load_file(model.transformer)["double_blocks.0.img_attn.proj.weight"]
    layers = {
        "lora_unet_double_blocks_0_img_attn_proj": weight.shape[0],
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": tiny.CLIP_WIDTH,
        "lora_te3_encoder_block_0_layer_0_SelfAttention_o": tiny.T5_WIDTH,
    }
    tensors = {}
    for name, width in layers.items():
        tensors[f"{name}.lora_down.weight"] = torch.eye(4, width)
        tensors[f"{name}.lora_up.weight"] = torch.eye(width, 4)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "lora1.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str) -> None:
    name, *argv = shlex.split(command)
    assert script(name.removesuffix(".py"), argv) == 0


def test_a_lora_is_merged_at_its_ratio_in_the_format_that_is_asked_for(workplace: Path) -> None:
    run(MERGE)
    name = "double_blocks.0.img_attn.proj.weight"
    before, after = load_file("flux1-dev.safetensors"), load_file("output.safetensors")
    assert {value.dtype for value in after.values()} == {torch.float16}
    wanted = before[name].float()
    wanted[range(4), range(4)] += 1.0  # a ratio of 2, times alpha / rank, which is a half
    torch.testing.assert_close(after[name].float(), wanted, rtol=1e-3, atol=1e-4)
    run(MERGE + ENCODERS)
    for old, new in (("clip_l", "merged_clip_l"), ("t5xxl_fp16", "merged_t5xxl")):
        first, second = load_file(f"{old}.safetensors"), load_file(f"{new}.safetensors")
        assert sum(not torch.equal(first[name], second[name]) for name in first) == 1


def test_loras_and_models_are_converted(workplace: Path) -> None:
    run(CONVERT_LORA)
    assert "transformer.transformer_blocks.0.attn.to_out.0.lora_A.weight" in load_file(
        "ai-toolkit_lora.safetensors"
    )
    assert main(["convert", "flux1-dev.safetensors", "folder"]) == 0
    run(CONVERT)
    before, after = load_file("flux1-dev.safetensors"), load_file("flux1.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value.bfloat16()) for name, value in before.items())
