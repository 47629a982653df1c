"""Guidance towards the look of an image, as VGG16 sees it (Gatys et al. 2015, arXiv:1508.06576)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfumato.sampling.effects.guidance.gradient import Loss

SHRINK = 4
"""Images are shown to the network at a quarter of their sides."""
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def likeness(features: nn.Module, image: Tensor, scale: float) -> Loss:
    """Return the mean squared distance of images' features from those of one image, times `scale`.

    Args:
        features: a network of (B, 3, h, w); see `vgg.load_features`.
        image: (1, 3, H, W) in [-1, 1], of the size of the images that are compared with it.
    """
    with torch.no_grad():
        wanted = features(shown(image))

    def loss(pixels: Tensor) -> Tensor:
        return (features(shown(pixels)) - wanted).square().mean(dim=(1, 2, 3)) * scale

    return loss


def shown(pixels: Tensor) -> Tensor:
    """Return what VGG16 is shown of pixels (B, 3, H, W) in [-1, 1]: smaller, with ImageNet's contrast."""
    mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in (_MEAN, _DEVIATION))
    size = pixels.shape[-2] // SHRINK, pixels.shape[-1] // SHRINK
    colors = (pixels / 2 + 0.5).clamp(0, 1)
    return (functional.interpolate(colors, size, mode="bilinear", antialias=True) - mean) / deviation
