"""What an adapter file is said to hold, and who loads it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.adapters.consumers import CONSUMERS, describe
from sfumato.cli.main import main, script

RECORDED = Path(__file__).parents[1] / "adapters" / "interchange"


def counts(keys: list[str]) -> tuple[int, ...]:
    return tuple(len(consumer.loaded(keys)) for consumer in CONSUMERS)


def recorded(name: str) -> list[str]:
    text = gzip.decompress((RECORDED / f"{name}.tsv.gz").read_bytes()).decode()
    return [line.split("\t")[0] for line in text.splitlines()]


def three(layer: str) -> list[str]:
    return [f"{layer}.{leaf}" for leaf in ("lora_down.weight", "lora_up.weight", "alpha")]


@pytest.mark.parametrize(
    ("keys", "loaded"),
    [
        (recorded("lora_flux_from_aitoolkit"), (912, 912, 912)),
        (recorded("aitoolkit_flux_from_lora_flux"), (988, 988, 0)),
        (three("lora_unet_down_blocks_0_attentions_0_proj_in"), (3, 3, 3)),
        (three("lora_unet_input_blocks_4_1_proj_in"), (3, 3, 3)),
        (three("lora_te_text_model_encoder_layers_0_mlp_fc1"), (3, 3, 3)),
        (three("lora_te2_text_model_encoder_layers_0_mlp_fc1"), (3, 3, 3)),
        (three("lora_te3_encoder_block_0_layer_0_SelfAttention_q"), (3, 0, 3)),
        (three("lora_unet_joint_blocks_0_x_block_attn_qkv"), (3, 0, 3)),
        (["lora_unet_mid_block_attentions_0_proj_in.hada_w1_a"], (1, 0, 1)),
        (["lora_unet_mid_block_attentions_0_proj_in.lokr_w1"], (1, 0, 1)),
        (["oft_unet_double_blocks_0_img_attn_qkv.oft_blocks.0"], (0, 0, 1)),
        (
            ["oft_unet_input_blocks_4_1_proj_in.oft_blocks", "oft_unet_input_blocks_4_1_proj_in.alpha"],
            (0, 0, 2),
        ),
        (["lora_unet_double_blocks_0_img_attn_qkv.lora_down.0.weight"], (0, 0, 0)),
        (["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"], (1, 0, 0)),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_programs_load_what_was_seen_to_load(keys: list[str], loaded: tuple[int, ...]) -> None:
    assert counts(keys) == loaded


def test_one_line_tells_all_programs() -> None:
    keys = [
        *three("lora_unet_double_blocks_0_img_attn_qkv"),
        *three("lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    ]
    assert describe(keys) == "of 6 tensors load: ComfyUI 6, diffusers 3, sd-scripts 6"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    tensors: dict[str, Tensor] = {}
    for number, scale in ((2, 1.0), (10, 2.0)):
        name = f"lora_unet_double_blocks_{number}_img_attn_proj"
        tensors[f"{name}.lora_down.weight"] = torch.eye(2, 4) * scale
        tensors[f"{name}.lora_up.weight"] = torch.eye(4, 2)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    tensors |= {key: torch.ones(3, 3) for key in three("lora_te1_text_model_encoder_layers_0_mlp_fc1")[:2]}
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, {"ss_base_model_version": "flux1", "ss_epoch": "4"})
    return path


def test_the_report_tells_kind_blocks_norms_and_metadata(
    lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check-lora", str(lora)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{lora}: a LoRA of 3 layers")
    assert "  ComfyUI loads 8 of 8 tensors" in lines
    assert "  base: flux1" in lines
    assert "  epoch: 4" in lines
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("unet", "te1"))}
    assert list(rows) == ["te1", "unet_double_blocks_2", "unet_double_blocks_10"]
    norm = 2**0.5 / 2
    assert rows["unet_double_blocks_2"] == ["1", "2", "1", f"{norm:.4g},", f"{norm:.4g}"]
    assert rows["unet_double_blocks_10"][-1] == f"{2 * norm:.4g}"
    assert rows["te1"] == ["1", "3", "-", "9,", "9"]


def test_every_tensor_is_listed_where_asked_and_broken_ones_are_named(
    lora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script("networks/check_lora_weights", [str(lora), "-s"]) == 0
    out = capsys.readouterr().out
    assert "lora_unet_double_blocks_10_img_attn_proj.lora_down.weight  2x4  mean |x| 0.5, max |x| 2" in out
    assert "not finite" not in out
    save_file({"lora_unet_x.lora_down.weight": torch.tensor([[float("nan")]])}, lora)
    assert main(["check-lora", str(lora)]) == 0
    assert (
        "1 tensors hold numbers that are not finite: lora_unet_x.lora_down.weight" in capsys.readouterr().out
    )


def test_what_is_no_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(1)}, path)
    assert main(["check-lora", str(path)]) == 2
    assert "holds no adapter that is known; give an adapter file" in capsys.readouterr().err
    assert main(["check-lora", str(tmp_path / "gone.safetensors")]) == 2
    assert "does not exist" in capsys.readouterr().err
