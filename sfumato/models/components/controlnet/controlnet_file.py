"""Files of ControlNets for Stable Diffusion 1, 2 and XL: opened in any of their forms, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sfumato.checkpoints.tensors import TensorReader
from sfumato.errors import UserError
from sfumato.models.components.controlnet import control_kinds, controlnet
from sfumato.models.components.controlnet.control_kinds import OPTION
from sfumato.models.components.controlnet.controlnet_names import diffusers_names
from sfumato.models.components.loading import sizes_of
from sfumato.models.components.model_files import open_weights
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.tensor_views import TensorView, view_of
from sfumato.models.components.unet.projections import with_projections
from sfumato.models.components.unet.unet import UnetShape

_PREFIX, _DIFFERENCE = "control_model.", "difference"
_MODELS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
"""Which model reads text of which width."""


@contextmanager
def opened(path: Path, base: TensorView) -> Iterator[TensorView]:
    """Open a ControlNet's tensors, in either naming.

    Args:
        path: a file, or a folder in diffusers' layout.
        base: the tensors of the UNet that it is for, by diffusers' names.

    Raises:
        UserError: it is no such ControlNet, or one for another model.
    """
    if not path.exists():
        raise UserError(f"--{OPTION} is {path}, which does not exist; give {controlnet.WHAT}")
    with open_weights(path) as file:
        view = _own(file)
        _check_kind(view)
        _check_shape(view, base)
        view = with_projections(view, is_linear=UnetShape.of(base.shapes).is_linear)
        yield _added_to(base, view) if _DIFFERENCE in file else view


def _own(file: TensorReader) -> TensorView:
    """Return the ControlNet's own tensors: some files hold its base model, too."""
    view = view_of(file)
    if any(name.startswith(_PREFIX) for name in view.shapes):
        return view.below(_PREFIX)
    return view


def _check_kind(view: TensorView) -> None:
    kind = recognise(view.shapes)
    if kind is None or kind.name != control_kinds.CONTROLNET:
        raise UserError(
            f"--{OPTION} is {view.path}: {describe(view.shapes)}; give a ControlNet of this kind of model"
        )


def _check_shape(view: TensorView, base: TensorView) -> None:
    """Raise UserError if a ControlNet is for a model of other sizes."""
    wanted = UnetShape.of(base.shapes)
    found = sizes_of(view.path, controlnet.WHAT, lambda: controlnet.shape_of(view.shapes))
    if found.context != wanted.context:
        raise UserError(
            f"--{OPTION} is {view.path}, a ControlNet for {_model(found)}; the model is {_model(wanted)}: "
            "give one that is for it"
        )
    if (found.depths, found.middle_depth) != (wanted.depths, wanted.middle_depth):
        raise UserError(f"--{OPTION} is {view.path}, a reduced ControlNet; give one of full size")
    if (found.widths, found.resnets) != (wanted.widths, wanted.resnets):
        raise UserError(f"--{OPTION} is {view.path}, a ControlNet for a model of another size; give another")


def _model(shape: UnetShape) -> str:
    return f"{_MODELS.get(shape.context, 'a model')} (text of width {shape.context})"


def _added_to(base: TensorView, view: TensorView) -> TensorView:
    """Return the sums of a file of differences and the UNet's own tensors."""
    names = diffusers_names(view.shapes)

    def get(name: str) -> Tensor:
        tensor = view.get(name)
        return tensor + base.get(names[name]).to(tensor) if names[name] in base.shapes else tensor

    return replace(view, get=get)
