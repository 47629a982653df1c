"""ControlNets are read from every form of file that is for their model, and refused by name otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import UserError
from sfumato.models.components.controlnet import controlnet, controlnet_file
from sfumato.models.components.controlnet.controlnet_names import published_names
from sfumato.models.components.tensor_views import TensorView
from sfumato.models.components.unet import unet
from tests import tiny

CPU = torch.device("cpu")
SHAPE = unet.UnetShape(4, 4, 1, (32, 64), (1, 0), 1, 16, 0, is_linear=False)


def random_state(model: Any, seed: int) -> dict[str, Tensor]:
    return tiny.random_weights({name: tuple(t.shape) for name, t in model.state_dict().items()}, seed)


BASE = random_state(unet.build(SHAPE), 0)
STATE = random_state(controlnet.build(SHAPE), 1)


def base() -> TensorView:
    return TensorView(Path("base"), {name: tuple(t.shape) for name, t in BASE.items()}, BASE.__getitem__)


def read(path: Path) -> dict[str, Tensor]:
    with controlnet_file.opened(path, base()) as view:
        return controlnet.load(view, torch.float32, CPU).state_dict()


def published(prefix: str = "", state: dict[str, Tensor] = STATE) -> dict[str, Tensor]:
    return {prefix + name: state[ours] for ours, name in published_names(set(state)).items()}


FORMS = {
    "diffusers": STATE,
    "published": published(),
    "with prefix": published("control_model."),
    "with its base": {**published("control_model."), "model.diffusion_model.out.0.weight": torch.ones(32)},
    "linear projections": published(
        "control_model.", {k: v.flatten(1) if ".proj_" in k and v.ndim == 4 else v for k, v in STATE.items()}
    ),
    "difference": {
        **published("control_model.", {k: v - BASE[k] if k in BASE else v for k, v in STATE.items()}),
        "difference": torch.empty(0),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_controlnet_is_read_from_each_form_of_file(form: str, tmp_path: Path) -> None:
    save_file({name: t.contiguous() for name, t in FORMS[form].items()}, tmp_path / "net.safetensors")
    found = read(tmp_path / "net.safetensors")
    assert found.keys() == STATE.keys()
    assert max(float((found[name] - STATE[name]).abs().max()) for name in STATE) < 1e-5


def test_a_folder_of_diffusers_is_read(tmp_path: Path) -> None:
    model = controlnet.build(SHAPE)
    model.load_state_dict(STATE, assign=True)
    model.save_pretrained(tmp_path / "net")
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in read(tmp_path / "net").items())


def other_model() -> dict[str, Tensor]:
    shape = unet.UnetShape(4, 4, 1, (32, 64), (1, 0), 1, 24, 0, is_linear=False)
    return random_state(controlnet.build(shape), 2)


REFUSED = {
    "text of width 24": other_model(),
    "a union ControlNet": {**STATE, "control_add_embedding.linear_1.weight": torch.ones(1)},
    "a Control-LoRA": {"lora_controlnet": torch.ones(1), "input_hint_block.0.weight": torch.ones(1)},
    "a T2I-Adapter": {"conv_in.weight": torch.ones(1), "body.0.block1.weight": torch.ones(1)},
    "for FLUX.1 that reads latents": {
        "controlnet_blocks.0.weight": torch.ones(1),
        "controlnet_x_embedder.weight": torch.ones(1),
    },
    "an IP-Adapter": {"image_proj.a": torch.ones(1), "ip_adapter.b": torch.ones(1)},
    "a LoRA": {"lora_unet_a.lora_down.weight": torch.ones(1)},
    "lacks 2 tensors": {name: t for name, t in STATE.items() if "controlnet_mid_block" not in name},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_other_files_are_refused_by_name(reason: str, tmp_path: Path) -> None:
    save_file(REFUSED[reason], tmp_path / "net.safetensors")
    with pytest.raises(UserError, match=reason):
        read(tmp_path / "net.safetensors")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "net.safetensors")


def test_residuals_equal_those_of_diffusers(tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    ours = controlnet.build(SHAPE)
    ours.load_state_dict(STATE, assign=True)
    ours.save_pretrained(tmp_path)
    theirs = ControlNetModel.from_pretrained(tmp_path)
    noisy, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 16)
    image, timesteps = torch.rand(2, 3, 64, 64), torch.tensor([3, 700])
    with torch.no_grad():
        found = controlnet.predict(ours, 2 * image - 1, noisy, timesteps, context)
        down, middle = theirs(noisy, timesteps, context, image, return_dict=False)
    for one, other in zip(found.values(), [*down, middle], strict=True):
        assert float((one - other).abs().max()) < 1e-5 * float(other.abs().max())
