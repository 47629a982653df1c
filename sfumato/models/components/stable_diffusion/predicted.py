"""What a Stable Diffusion predicts: what its files say, and what the user says.

Single files say so by tensors that are none of the model's, `v_pred` and `ztsnr`, mostly without values, or
in their metadata; folders in diffusers' layout by the settings of their scheduler. Many do not say anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfumato.checkpoints.tensors import open_tensors
from sfumato.config import json_text
from sfumato.config.run.model.model import ModelConfig
from sfumato.errors import UserError
from sfumato.models.interface.family import Prediction

VELOCITY_MARK, ZERO_TERMINAL_MARK = "v_pred", "ztsnr"
"""Names of tensors by which a single file says that it predicts velocity, and that its noise schedule ends in
pure noise (Lin et al. 2023, arXiv:2305.08891)."""

SETTINGS = Path("scheduler", "scheduler_config.json")
"""Where a folder keeps the settings of its scheduler."""

FIELD = "modelspec.prediction_type"
"""What files say in their metadata."""

_KINDS = {
    **dict.fromkeys(("v", "v_prediction", "velocity"), Prediction.VELOCITY),
    **dict.fromkeys(("epsilon", "eps"), Prediction.EPSILON),
}
_STRANGE_MARKS = ("edm_mean", "edm_std", "edm_vpred.sigma_max")
"""Tensors by which files say that they are made for the noise levels of Karras et al. 2022 (EDM)."""
_WORDS = {Prediction.EPSILON: "noise", Prediction.VELOCITY: "velocity"}


@dataclass(frozen=True)
class Told:
    """What a model's files say.

    Attributes:
        kind: what is predicted, None where they do not say or it is nothing that is known here.
        zero_terminal: whether the noise schedule ends in pure noise.
        by: what says so, for messages.
        is_strange: whether they say something that is not known here.
    """

    kind: Prediction | None = None
    zero_terminal: bool = False
    by: str = ""
    is_strange: bool = False


@dataclass(frozen=True)
class Predicted:
    """What a model is taken to predict.

    Attributes:
        zero_terminal: whether its files say that the noise schedule ends in pure noise.
        remark: what the user should know of it; "" where nothing is unusual.
        contradiction: why it cannot be what the user says; "" where it can.
        strangeness: why it can be neither trained nor sampled; "" where it can.
    """

    kind: Prediction = Prediction.EPSILON
    zero_terminal: bool = False
    remark: str = ""
    contradiction: str = ""
    strangeness: str = ""

    @property
    def is_velocity(self) -> bool:
        """Whether velocity is predicted."""
        return self.kind is Prediction.VELOCITY


def predicted_by(model: ModelConfig, path: Path | None) -> Predicted:
    """Return what a run's base predicts: what the user insists on, else what files say, else options."""
    told, name = told_by(path, use_mmap=not model.disable_mmap_load_safetensors), path.name if path else ""
    says = f"{name} says ({told.by}) that it predicts"
    if model.prediction_type != "auto":
        kind = _KINDS[model.prediction_type]
        overruled = told.is_strange or told.kind not in (None, kind)
        remark = f"{says} something else, but --prediction_type {model.prediction_type} counts" * overruled
        return Predicted(kind, told.zero_terminal and not overruled, remark)
    asked = Prediction.VELOCITY if model.v_parameterization else Prediction.EPSILON
    if told.is_strange:
        return Predicted(
            asked, strangeness=f"{says} neither noise nor velocity as they are known here; {_FORCE}"
        )
    if told.kind is None:
        return Predicted(asked, told.zero_terminal)
    if model.v_parameterization and told.kind is Prediction.EPSILON:
        contradiction = f"--v_parameterization is given, but {says} noise; leave it out, or {_INSIST}"
        return Predicted(told.kind, told.zero_terminal, contradiction=contradiction)
    end = ", from a noise schedule that ends in pure noise" if told.zero_terminal else ""
    remark = f"{says} {_WORDS[told.kind]}{end}" if told.kind is Prediction.VELOCITY or end else ""
    return Predicted(told.kind, told.zero_terminal, remark)


def told_by(path: Path | None, *, use_mmap: bool = True) -> Told:
    """Return what a file or folder says; nothing where it cannot be read, which checks report.

    Raises:
        UserError: the settings of a folder's scheduler are damaged.
    """
    if path is None or not path.exists():
        return Told()
    if path.is_dir():
        return _told_by_scheduler(scheduler_settings(path))
    try:
        with open_tensors(path, use_mmap=use_mmap) as file:
            return told_by_file(file.keys(), file.metadata)
    except UserError:
        return Told()


def told_by_file(names: Iterable[str], metadata: Mapping[str, str]) -> Told:
    """Return what a single file with these tensors says; its marks count before its metadata."""
    names = set(names)
    zero_terminal = ZERO_TERMINAL_MARK in names
    if strange := [mark for mark in _STRANGE_MARKS if mark in names]:
        return Told(None, zero_terminal, ", ".join(strange), is_strange=True)
    marks = ", ".join(mark for mark in (VELOCITY_MARK, ZERO_TERMINAL_MARK) if mark in names)
    if VELOCITY_MARK in names:
        return Told(Prediction.VELOCITY, zero_terminal, marks)
    if word := metadata.get(FIELD, "").strip():
        kind = _KINDS.get(word.lower())
        return Told(kind, zero_terminal, ", ".join(filter(None, (f"{FIELD} {word}", marks))), kind is None)
    return Told(None, zero_terminal, marks)


def scheduler_settings(folder: Path) -> dict[str, Any]:
    """Return the settings of a folder's scheduler, where it has some."""
    file = folder / SETTINGS
    return json_text.read_object(file) if file.is_file() else {}


def as_settings(predicted: Predicted) -> dict[str, Any]:
    """Return what the settings of a scheduler say of a model."""
    kind = "v_prediction" if predicted.is_velocity else "epsilon"
    if not predicted.zero_terminal:
        return {"prediction_type": kind}
    # What is sampled has to begin where the schedule ends.
    return {"prediction_type": kind, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def _told_by_scheduler(settings: Mapping[str, Any]) -> Told:
    zero_terminal = bool(settings.get("rescale_betas_zero_snr"))
    name, word = str(settings.get("_class_name", "")), settings.get("prediction_type")
    if name.startswith(("EDM", "FlowMatch")):
        return Told(None, zero_terminal, f"{SETTINGS.name}: {name}", is_strange=True)
    if not word:
        return Told(None, zero_terminal, SETTINGS.name)
    kind = _KINDS.get(str(word))
    end = ", rescale_betas_zero_snr" if zero_terminal else ""
    return Told(kind, zero_terminal, f"{SETTINGS.name}: prediction_type {word}{end}", kind is None)


_INSIST = "insist with --prediction_type v_prediction"
_FORCE = "train another base, or insist with --prediction_type epsilon or v_prediction"
