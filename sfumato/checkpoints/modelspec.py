"""The modelspec metadata standard, version 1.0.0 (https://github.com/Stability-AI/ModelSpec)."""

from __future__ import annotations

import base64
import mimetypes
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Literal, Protocol

from sfumato.config.run.output.metadata import MetadataConfig

Kind = Literal["checkpoint", "lora", "textual-inversion", "controlnet", "control-net-lllite"]

_TITLES = {"lora": "LoRA", "textual-inversion": "TextualInversion"}
_OPTION_PREFIX = "metadata_"


class Identity(Protocol):
    """What a family says of itself; `models.family.ModelIdentity` is one."""

    @property
    def architecture(self) -> str:
        """Name of the architecture, without a suffix for the kind of file."""
        ...

    @property
    def implementation(self) -> str:
        """Whose format its checkpoints have."""
        ...

    @property
    def adapter_implementation(self) -> str | None:
        """Whose format its adapters have; None is that of checkpoints."""
        ...

    @property
    def resolution(self) -> tuple[int, int]:
        """Native (width, height)."""
        ...

    @property
    def prediction_type(self) -> str | None:
        """What the denoiser predicts; None leaves the field out."""
        ...


def build(
    identity: Identity,
    config: MetadataConfig,
    *,
    kind: Kind,
    name: str | None,
    timestamp: float,
    resolution: tuple[int, int] | None = None,
    timestep_range: tuple[int | None, int | None] = (None, None),
    encoder_layer: int | None = None,
) -> dict[str, str]:
    """Return the `modelspec.*` fields of one file.

    Args:
        identity: of the family.
        config: what the user wants said; each option becomes a field of its name.
        kind: what the file holds.
        name: the title where the user gives none.
        timestamp: Unix seconds of the save; the date is local time without a zone.
        resolution: (width, height) of training; the family's own where None.
        timestep_range: lowest and highest timestep of training, 0 and 1000 where one is None.
        encoder_layer: clip skip, where one was used.
    """
    low, high = timestep_range
    width, height = resolution or identity.resolution
    given = {key.removeprefix(_OPTION_PREFIX): value for key, value in asdict(config).items()}
    fields = {
        **given,
        "sai_model_spec": "1.0.0",
        "architecture": identity.architecture + ("" if kind == "checkpoint" else f"/{kind}"),
        "implementation": (kind == "lora" and identity.adapter_implementation) or identity.implementation,
        "title": config.metadata_title or name or f"{_TITLES.get(kind, 'Checkpoint')}@{timestamp}",
        "resolution": f"{width}x{height}",
        "date": datetime.fromtimestamp(int(timestamp)).isoformat(),
        "thumbnail": config.metadata_thumbnail and _as_url(config.metadata_thumbnail),
        "prediction_type": identity.prediction_type,
        "timestep_range": None if low is high is None else f"{low or 0},{1000 if high is None else high}",
        "encoder_layer": encoder_layer,
    }
    return {f"modelspec.{key}": str(value) for key, value in fields.items() if value is not None}


def _as_url(thumbnail: str) -> str:
    """Return an image file as a data URL, anything else as it is."""
    if thumbnail.startswith(("data:", "http:", "https:")) or not Path(thumbnail).is_file():
        return thumbnail
    kind = mimetypes.guess_type(thumbnail)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(Path(thumbnail).read_bytes()).decode()}"
