"""Models of transformers that write about images, from a folder or by their names."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import UserError, guest_code
from sfumato.hub.access import HubAccess
from sfumato.hub.fetching import located
from sfumato.lean_imports import lean
from sfumato.nn.device import default_device

logger = logging.getLogger(__name__)


def load(
    name: str, option: str, access: HubAccess, dtype: torch.dtype | None = torch.float32
) -> tuple[Any, Any]:
    """Return (model, processor), the model on the fastest device and in inference mode.

    Code that lies beside a model's weights is never run.

    Args:
        name: a folder, or a name on the Hub.
        option: what the name was given as, for messages.
        dtype: that of the files where None.

    Raises:
        UserError: there is no such model, it cannot be fetched, or transformers does not have it.
    """
    folder = located(name, option, access=access)
    if folder is None or not (folder / "config.json").is_file():
        raise UserError(f"{option} is {name}, which is no folder with a config.json and no name on the Hub")
    with guest_code(f"{option} {name} cannot be loaded", "name a model that transformers has itself"):
        model, processor = _loaded(folder, dtype)
    device = default_device()
    logger.info("%s runs on %s in %s", type(model).__name__, device, str(model.dtype).removeprefix("torch."))
    return model.eval().requires_grad_(False).to(device), processor


def processor_of(folder: Path) -> Any:
    """Return what prepares images and texts for the model in a folder."""
    with lean():
        from transformers import AutoProcessor
    return AutoProcessor.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)


def _loaded(folder: Path, dtype: torch.dtype | None) -> tuple[Any, Any]:
    with lean():
        from transformers import AutoModelForImageTextToText
    model = AutoModelForImageTextToText.from_pretrained(
        str(folder), dtype=dtype or "auto", local_files_only=True, trust_remote_code=False
    )
    return model, processor_of(folder)
