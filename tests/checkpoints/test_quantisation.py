"""Files with quantised weights are told by their headers, and refused in one line that names their layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.checkpoints.quantisation import quantised_as
from sfumato.checkpoints.tensors import open_tensors
from sfumato.errors import UserError
from sfumato.models.components.model_files import open_weights

LAYER = "model.diffusion_model.double_blocks.0.img_attn.qkv"
FP8 = torch.ones(4, 4).to(torch.float8_e4m3fn)
INT8 = torch.ones(4, 4, dtype=torch.int8)
BYTES = torch.ones(8, 1, dtype=torch.uint8)
ONE = torch.ones(1)
LAYOUTS = {
    "nf4": ({"weight": BYTES, "weight.quant_state.bitsandbytes__nf4": BYTES}, "nf4"),
    "bnb int8": ({"weight": INT8, "SCB": ONE}, "int8 by bitsandbytes"),
    "quanto int8": ({"weight._data": INT8, "weight._scale": ONE}, "optimum-quanto"),
    "quanto int4": ({"weight._data._data": BYTES, "weight._scale": ONE}, "optimum-quanto"),
    "comfy_quant": ({"weight": FP8, "weight_scale": ONE, "comfy_quant": BYTES}, "comfy_quant"),
    "scaled fp8": ({"weight": FP8, "scale_weight": ONE}, "scaled fp8"),
    "scaled marker": ({"weight": FP8, "scaled_fp8": ONE}, "scaled fp8"),
    "fp8 with scales": ({"weight": FP8, "weight_scale": ONE}, "scales beside them"),
    "nunchaku": ({"qweight": INT8, "wscales": ONE, "smooth_factor": ONE}, "Nunchaku"),
    "torchao": ({"weight:_data": INT8, "_weight_scale": ONE}, "torchao"),
    "unknown int8": ({"weight": INT8}, "not known"),
    "unknown uint8": ({"weight": BYTES}, "not known"),
}


def file_with(path: Path, leaves: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write one layer in some layout, and return its file."""
    save_file({f"{LAYER}.{leaf}": tensor.clone() for leaf, tensor in leaves.items()}, path, metadata)
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_quantised_file_is_refused_by_the_name_of_its_layout(name: str, tmp_path: Path) -> None:
    leaves, layout = LAYOUTS[name]
    path = file_with(tmp_path / "model.safetensors", leaves)
    with pytest.raises(UserError) as error:
        open_weights(path)
    line = str(error.value)
    assert str(path) in line
    assert layout in line
    assert LAYER in line
    assert "plain fp8" in line
    assert "\n" not in line


def test_metadata_or_the_settings_of_a_folder_tell_too(tmp_path: Path) -> None:
    path = file_with(tmp_path / "model.safetensors", {"weight": FP8}, {"_quantization_metadata": "{}"})
    with pytest.raises(UserError, match=r"comfy_quant.*bf16"):
        open_weights(path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "torchao"}}')
    with pytest.raises(UserError, match=r"by torchao.*bf16"):
        open_weights(tmp_path)


@pytest.mark.parametrize("plain", [FP8, FP8.to(torch.float8_e5m2), torch.ones(4, 4)])
def test_numbers_that_were_merely_cast_are_no_quantised_weights(plain: Tensor, tmp_path: Path) -> None:
    others = {"bias": ONE, "position_ids": torch.arange(3), "spiece_model": torch.ones(9, dtype=torch.uint8)}
    with open_tensors(file_with(tmp_path / "model.safetensors", {"weight": plain, **others})) as file:
        assert quantised_as({name: file.info(name) for name in file.keys()}) is None  # noqa: SIM118 - no mapping
