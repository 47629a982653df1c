"""CLIP as a judge of images: what it sees in pixels, and what it reads in texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from sfumato.errors import UserError, guest_code
from sfumato.lean_imports import lean

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ClipEye(nn.Module):
    """The half of CLIP that sees.

    Args:
        network: transformers' CLIPVisionModelWithProjection.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network

    def forward(self, pixels: Tensor) -> Tensor:
        """Return embeddings (B, P) of pixels (B, 3, H, W) in [-1, 1]."""
        side = cast(Any, self._network).config.image_size
        return self._network(shown(pixels, side)).image_embeds


def load_eye(folder: Path) -> ClipEye:
    """Load the half that sees from a folder of transformers, frozen and in eval mode, in float32.

    Raises:
        UserError: there is no such folder, or it holds another model.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json of a CLIP model; download the whole folder")
    with lean():
        from transformers import CLIPVisionModelWithProjection
    with guest_code(f"the CLIP model in {folder}", "download it anew"):
        network = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True)
    return ClipEye(cast(nn.Module, network)).requires_grad_(False).eval()


def shown(pixels: Tensor, side: int) -> Tensor:
    """Return what CLIP is shown of pixels (B, 3, H, W) in [-1, 1]: a square, with its contrast."""
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    colors = (pixels / 2 + 0.5).clamp(0, 1)
    square = functional.interpolate(colors, (side, side), mode="bicubic", antialias=True)
    return (square - mean) / deviation
