"""Models in ONNX files, run by onnxruntime on the best device that it has."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato import installing
from sfumato.errors import UserError, guest_code

PROVIDERS = (
    "OpenVINOExecutionProvider",
    "CUDAExecutionProvider",
    "ROCMExecutionProvider",
    "CPUExecutionProvider",
)
"""What onnxruntime may compute with, the best first."""

Pixels = NDArray[np.float32]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OnnxModel:
    """A model with one input of images.

    Attributes:
        input_shape: of the input; None where a size is free.
    """

    session: Any
    input_name: str
    input_shape: tuple[int | None, ...]

    @property
    def fixed_batch(self) -> int | None:
        """How many images it takes together, if it takes no other number."""
        return self.input_shape[0]

    def __call__(self, batch: Pixels) -> list[NDArray[Any]]:
        """Return the outputs for a batch, (B, ...) each; a smaller one than a fixed batch is filled up."""
        missing = max((self.fixed_batch or 0) - len(batch), 0)
        filled = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)]) if missing else batch
        with guest_code("the ONNX model does not take these images", "name another model"):
            outputs = self.session.run(None, {self.input_name: filled})
        return [output[: len(batch)] for output in outputs]


def load(path: Path, purpose: str, remedy: str) -> OnnxModel:
    """Open an ONNX file, and say what it runs on.

    Args:
        purpose: what needs it, for the message that onnxruntime is missing.
        remedy: what to do about a damaged file.

    Raises:
        UserError: onnxruntime is missing, or the file cannot be read.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(f"{purpose} needs onnxruntime; run {installing.command_for('onnxruntime')}")
    runtime: Any = importlib.import_module("onnxruntime")
    runtime.set_default_logger_severity(3)  # its warnings are about graphs that nobody here has made
    chosen = [name for name in PROVIDERS if name in runtime.get_available_providers()]
    with guest_code(f"{path} cannot be read as an ONNX model", remedy):
        session = runtime.InferenceSession(str(path), providers=chosen)
    logger.info("%s runs on %s", path.name, session.get_providers()[0].removesuffix("ExecutionProvider"))
    image = session.get_inputs()[0]
    shape = tuple(side if isinstance(side, int) else None for side in image.shape)  # free sizes have names
    return OnnxModel(session, image.name, shape)
