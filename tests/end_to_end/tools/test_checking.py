"""What an adapter file is said to hold, and who loads it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.adapters.files.programs.told import describe, verdicts
from sfumato.adapters.files.sizes import describe_file
from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.layers.loha import Loha
from sfumato.adapters.layers.lokr import Lokr, shapes_for
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.layers.oft import Oft
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.cli.main import main, script
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget

RECORDED = Path(__file__).parents[2] / "adapters" / "files" / "dialects" / "recorded"


def recorded(name: str) -> list[str]:
    text = gzip.decompress((RECORDED / f"{name}.tsv.gz").read_bytes()).decode()
    return [line.split("\t")[0] for line in text.splitlines()]


def three(layer: str) -> list[str]:
    return [f"{layer}.{leaf}" for leaf in ("lora_down.weight", "lora_up.weight", "alpha")]


@pytest.mark.parametrize(
    ("name", "loaded"),
    [("lora_flux_from_aitoolkit", (912, 912, 912, 912)), ("aitoolkit_flux_from_lora_flux", (988, 988, 0))],
)
def test_programs_load_what_was_seen_to_load(name: str, loaded: tuple[int, ...]) -> None:
    found = verdicts(dict.fromkeys(recorded(name), (4, 4)))
    assert tuple(len(verdict.loaded) for verdict in found.values()) == loaded


def test_one_line_tells_all_programs() -> None:
    keys = [
        *three("lora_unet_double_blocks_0_img_attn_qkv"),
        *three("lora_te3_encoder_block_0_layer_0_SelfAttention_q"),
    ]
    assert describe(dict.fromkeys(keys, (4, 4))) == (
        "of 6 tensors load: ComfyUI 6, diffusers 3, sd-scripts 6, InvokeAI none, it refuses the file"
    )


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
        "1 tensor holds numbers that are not finite: lora_unet_x.lora_down.weight" in capsys.readouterr().out
    )


def test_what_is_no_adapter_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(1)}, path)
    assert main(["check-lora", str(path)]) == 2
    assert "holds no adapter that is known; give an adapter file" in capsys.readouterr().err
    assert main(["check-lora", str(tmp_path / "gone.safetensors")]) == 2
    assert "does not exist" in capsys.readouterr().err


KINDS: dict[str, tuple[Callable[[AdapterTarget], AdapterLayer], str, str]] = {
    "LoRA": (lambda t: Lora(t, 3, 1.5), "3", "LoRA of rank 3"),
    "LoHa": (lambda t: Loha(t, 2, 1.0, has_core=True), "2", "LoHa of rank 2"),
    "LoKr": (lambda t: Lokr(t, shapes_for(t.module, 1, 2), 2.0), "1", "LoKr of rank 1"),
    "whole LoKr": (
        lambda t: Lokr(t, shapes_for(t.module, 1, 4, is_full=True)),
        "whole",
        "LoKr of rank whole",
    ),
    "OFT": (lambda t: Oft(t, 2, 0.05), "2x4", "OFT of blocks 2x4"),
    "fused OFT": (lambda t: Oft(t, 2, 0.05, splits=(2, 6)), "2x1-3", "OFT of blocks 2x1-3"),
}
"""How a layer of 8 outputs is adapted, the size that the table shows, and what the line after a save says."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_tells_its_size_and_how_much_it_changes(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, size, said = KINDS[kind]
    torch.manual_seed(0)
    modules = {
        "unet_down_blocks_0_attentions_0_to_q": nn.Linear(12, 8),
        "unet_mid_block_resnets_0_conv1": nn.Conv2d(4, 8, 3),
    }
    for module in modules.values():
        nn.init.orthogonal_(module.weight)
    network = AdapterNetwork(make(AdapterTarget(name, module, DENOISER)) for name, module in modules.items())
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    path = tmp_path / "x.safetensors"
    network.save(path, None, {})
    changes = [float(layer.delta().detach().norm()) for layer in network.layers]
    capsys.readouterr()
    assert main(["check-lora", str(path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    blocks = report["blocks"]
    shares = [change / 8**0.5 for change in changes] if "OFT" in kind else []
    found = [block["turns" if shares else "norms"][0] for block in blocks.values()]
    assert found == pytest.approx(shares or changes, rel=1e-5)
    read = [key for key in load_file(path) if not ("oft_" in key and "conv" in key)]  # turned there: matrices
    assert report["num_tensors"] == len(load_file(path))
    assert report["loaded"]["sd-scripts"]["tensors"] == len(read)
    assert main(["check-lora", str(path)]) == 0
    table = [line.split("  ") for line in capsys.readouterr().out.splitlines() if line.startswith("unet_")]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert [row[:3] for row in cells] == [[name, "1", size] for name in blocks]
    values = [f"{100 * v:.4g} %, {100 * v:.4g} % of the weight's" for v in shares]
    assert [row[-1] for row in cells] == (values or [f"{v:.4g}, {v:.4g}" for v in changes])
    assert str(describe_file(path)).startswith(
        f"{said} in 2 layers; of {len(load_file(path))} tensors load: "
    )


def test_layers_of_other_namings_and_of_another_form_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, layer = tmp_path / "x.safetensors", "transformer.single_transformer_blocks.3.proj_mlp"
    halves = {"lora_A.weight": torch.eye(2, 4), "lora_B.weight": torch.eye(6, 2)}
    core = {"lora_down.weight": torch.ones(2, 4), "lora_mid.weight": torch.ones(2, 2, 3, 3)}
    tensors = {f"{layer}.{leaf}": value for leaf, value in halves.items()}
    tensors |= {f"lora_unet_x.{leaf}": value for leaf, value in core.items()}
    save_file(tensors | {"lora_unet_x.lora_up.weight": torch.ones(6, 2)}, path)
    assert main(["check-lora", str(path), "--json"]) == 0
    blocks = json.loads(capsys.readouterr().out)["blocks"]
    own = blocks["transformer.single_transformer_blocks.3"]
    assert own["norms"] == pytest.approx([2**0.5])
    assert own["sizes"] == [{"kind": "LoRA", "rank": 2, "blocks": []}]
    assert blocks["other layers"]["norms"] == pytest.approx([4 * (6 * 4 * 9) ** 0.5])
    said = "Tucker LoRA of rank 2 in 1 layer, LoRA of rank 2 in 1 layer; of 5 tensors load: "
    assert str(describe_file(path)).startswith(said)


def test_a_dora_is_called_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, layer = tmp_path / "x.safetensors", "lora_unet_double_blocks_0_img_attn_proj"
    tensors = {
        "lora_down.weight": torch.ones(2, 4),
        "lora_up.weight": torch.ones(4, 2),
        "alpha": torch.tensor(2.0),
    }
    save_file({f"{layer}.{leaf}": value for leaf, value in tensors.items()}, path)
    assert main(["check-lora", str(path)]) == 0
    assert ": a LoRA of 1 layer" in capsys.readouterr().out
    save_file(
        {f"{layer}.{leaf}": value for leaf, value in {**tensors, "dora_scale": torch.ones(4, 1)}.items()},
        path,
    )
    assert main(["check-lora", str(path)]) == 0
    shown = capsys.readouterr().out
    assert ": a DoRA of 1 layer" in shown
    assert "DoRA acts otherwise there" in shown
