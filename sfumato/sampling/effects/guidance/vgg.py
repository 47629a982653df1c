"""The convolutions of VGG16 (Simonyan and Zisserman 2014, arXiv:1409.1556), by the names of torchvision."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from sfumato.checkpoints.tensors import open_tensors
from sfumato.errors import UserError

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_PREFIX = "features."
NUM_LAYERS = 31
"""Convolutions, activations and poolings, as torchvision counts them."""


def build_features(num_layers: int = NUM_LAYERS) -> nn.Sequential:
    """Return the first layers, untrained."""
    layers: list[nn.Module] = []
    channels = 3
    for widths in _WIDTHS:
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers[:num_layers])


def load_features(path: Path, last: int) -> nn.Sequential:
    """Load the layers up to number `last`, counted from 0, frozen and in eval mode.

    Args:
        path: `vgg16-397923af.pth` of torchvision, or its tensors in another kind of file.

    Raises:
        UserError: there is no such file or layer, or the file is another network's.
    """
    if not path.exists():
        raise UserError(
            f"VGG16 guidance needs the file {path}, which is not there; download "
            "https://download.pytorch.org/models/vgg16-397923af.pth"
        )
    if not 0 <= last < NUM_LAYERS:
        raise UserError(f"--vgg16_guidance_layer is {last}; use a number from 0 to {NUM_LAYERS - 1}")
    features = build_features(last + 1)
    features.load_state_dict(_tensors(path, features))
    return features.requires_grad_(False).eval()


def _tensors(path: Path, features: nn.Module) -> dict[str, Tensor]:
    with open_tensors(path) as file:
        wanted = {name: tuple(tensor.shape) for name, tensor in features.state_dict().items()}
        shapes = {name: file.shape(_PREFIX + name) for name in wanted if _PREFIX + name in file}
        if shapes != wanted:
            raise UserError(f"{path} does not hold the convolutions of VGG16; check the path")
        return {name: file.get(_PREFIX + name) for name in shapes}
