"""Whole checkpoints of Stable Diffusion as programs load and save them, part by part.

UNets and autoencoders are diffusers' models, text encoders transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import read_counters
from sfumato.checkpoints.tensors import open_tensors
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.components.unet import unet_names
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.publishing import Publishing
from sfumato.models.registry.families import family_for

_LOGIT_SCALE = "logit_scale"


class HoldsTensors(Protocol):
    """A model, as far as it is filled and saved."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return its tensors by their names."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> object:
        """Take tensors by their names."""
        ...


class UnetOfFile:
    """A UNet's tensors by the names that files give them: made to be filled and saved, not to compute."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def state_dict(self) -> Mapping[str, Tensor]:
        """Return its tensors by their names in files, without prefix."""
        return dict(self._tensors)

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Take a whole UNet's tensors, by those names."""
        self._tensors = dict(state_dict)


def load_parts(
    v2: bool,
    ckpt_path: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    *,
    family: str,
) -> tuple[nn.Module, ...]:
    """Return the text encoders in order, the autoencoder and the UNet of a checkpoint.

    Args:
        v2: whether it is Stable Diffusion 2.
        dtype: float32 where None.

    Raises:
        UserError: the file is missing, broken or another model.
    """
    bound = _bound(family, Path(ckpt_path), v2=v2)
    names = (*bound.text_outputs, VAE, DENOISER)
    bound.check(names)
    return tuple(bound.load(name, dtype or torch.float32, torch.device(device)) for name in names)


def load_parts_and_marks(
    model_version: object,
    ckpt_path: str,
    map_location: str | torch.device,
    dtype: torch.dtype | None = None,
    *,
    family: str,
) -> tuple[object, ...]:
    """Return what `load_parts` does, then the logits' scale and the file's (epoch, step), where it has them.

    Args:
        model_version: not used; the file tells.
    """
    parts = load_parts(False, ckpt_path, map_location, dtype, family=family)
    counters = read_counters(Path(ckpt_path))
    info = (counters.get("epoch", 0), counters.get("global_step", 0)) if counters else None
    return (*parts, _logit_scale(Path(ckpt_path)), info)


def save_checkpoint(
    output_file: str,
    text_encoder1: HoldsTensors,
    text_encoder2: HoldsTensors,
    unet: HoldsTensors,
    epochs: int | None,
    steps: int | None,
    ckpt_info: tuple[int, int] | None,
    vae: HoldsTensors,
    logit_scale: Tensor | None,
    metadata: Mapping[str, str] | None,
    save_dtype: torch.dtype | None = None,
    *,
    family: str,
) -> None:
    """Write a checkpoint with two text encoders as one file.

    Args:
        epochs, steps: what a pickled file counts, beyond `ckpt_info`.
        logit_scale: not used: files have the scale of every published CLIP, which nothing uses.
        metadata: what a safetensors file says of itself.
        save_dtype: None keeps each tensor's own.

    Raises:
        UserError: the file cannot be written, or a value is no number.
    """
    bound, models = _bound(family, None), (text_encoder1, text_encoder2, vae, unet)
    names = (*bound.text_outputs, VAE, DENOISER)
    parts = {name: _tensors(model) for name, model in zip(names, models, strict=True)}
    epoch, step = ckpt_info or (0, 0)
    how = Publishing(
        dtype=save_dtype,
        metadata=metadata or {},
        epoch=epoch + (epochs or 0),
        step=step + (steps or 0),
    )
    bound.write(parts, Path(output_file), how)


def as_published(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of diffusers' UNet by the names that files give them, without prefix."""
    names = unet_names.published_names(state_dict)
    return {names[name]: tensor for name, tensor in state_dict.items()}


def fill(
    model: HoldsTensors,
    state_dict: Mapping[str, Tensor],
    device: str | torch.device,
    dtype: torch.dtype | None = None,
) -> object:
    """Put tensors into a model, each on that device and in that dtype; its own where None."""
    return model.load_state_dict({name: value.to(device, dtype) for name, value in state_dict.items()})


def _bound(family: str, path: Path | None, *, v2: bool = False) -> Family:
    model = ModelConfig(pretrained_model_name_or_path=str(path) if path else None, v2=v2)
    return family_for(Run("library", family, [model]))


def _tensors(model: HoldsTensors) -> dict[str, LazyTensor]:
    return {name: LazyTensor.of(tensor) for name, tensor in model.state_dict().items()}


def _logit_scale(path: Path) -> Tensor | None:
    """Return the scale that CLIP's training left in a file, where there is one."""
    with open_tensors(path) as file:
        name = next((name for name in file.keys() if name.endswith(_LOGIT_SCALE)), None)  # noqa: SIM118
        return file.get(name) if name else None
