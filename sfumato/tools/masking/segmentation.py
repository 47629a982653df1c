"""Models in ONNX files that tell foreground from background: U2-Net, IS-Net, BiRefNet and their kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sfumato.errors import UserError
from sfumato.hub.access import HubAccess
from sfumato.hub.fetching import located
from sfumato.tools import onnx_models
from sfumato.tools.onnx_models import OnnxModel

_USUAL_SIDE = 320


@dataclass(frozen=True)
class Segmentation:
    """Makes masks of what a model takes for foreground.

    Attributes:
        mean, std: the model wants (level - mean) / std of levels in 0..1, by channel.
    """

    model: OnnxModel
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the mask of an image."""
        _, _, height, width = self.model.input_shape
        size = width or _USUAL_SIDE, height or _USUAL_SIDE
        small = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        levels = (np.asarray(small, np.float32) / 255 - mean) / std
        output = self.model(np.ascontiguousarray(levels.transpose(2, 0, 1)[None]))[0][0]
        mask = np.rint(foreground(output) * 255).astype(np.uint8)
        return Image.fromarray(mask).resize(image.size, Image.Resampling.BILINEAR)


def load(name: str, access: HubAccess, mean: Sequence[float], std: Sequence[float]) -> Segmentation:
    """Return the maker of a model's masks.

    Raises:
        UserError: there is no such model, or it takes no images with channels first.
    """
    path = located(name, "--model", access=access)
    if path is None or not Path(path).is_file():
        raise UserError(f"--model is {name}, which is no file; name an ONNX file, or user/name/file.onnx")
    model = onnx_models.load(path, "a model for masks", "name another model")
    if len(model.input_shape) != 4 or model.input_shape[1] not in (3, None):
        raise UserError(f"--model {name} takes {model.input_shape} for (1, 3, H, W); name another model")
    return Segmentation(model, mean, std)


def foreground(output: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return (H, W) in [0, 1], how much each pixel is foreground.

    Args:
        output: (H, W) or (1, H, W), probabilities or logits; or (C, H, W), logits of classes, of which the
            first is the background.
    """
    values = output.astype(np.float64)
    if values.ndim == 3 and len(values) > 1:
        chances = np.exp(values - values.max(axis=0))
        return 1 - chances[0] / chances.sum(axis=0)
    values = values.reshape(values.shape[-2:])
    is_probability = values.min() >= 0 and values.max() <= 1
    return values if is_probability else 1 / (1 + np.exp(-values))
