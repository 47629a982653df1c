"""Show the strings that a model file carries beside its tensors."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.config.run.run import Run
from sfumato.config.tools.inspection import InspectionConfig
from sfumato.errors import UserError

logger = logging.getLogger(__name__)


def show_metadata(run: Run) -> str:
    """Return a file's metadata as JSON, keys sorted; values stay the strings that they are in the file.

    Raises:
        UserError: the file is missing, broken, or of a format without metadata.
    """
    path = Path(run[InspectionConfig].model)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise UserError(f"--model is {path}: pickled files carry no metadata; give a .safetensors file")
    if path.is_dir():
        raise UserError(f"--model is {path}, which is a folder; give one of its .safetensors files")
    metadata = read_header(path).metadata
    if not metadata:
        logger.warning("%s carries no metadata", path)
    return json.dumps(metadata, indent=4, sort_keys=True)
