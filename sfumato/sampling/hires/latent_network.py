"""A residual network that sharpens the latents of an enlarged image, for Stable Diffusion 1 and 2.

The names of its tensors are those of published files.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional

from sfumato.checkpoints.tensors import open_tensors
from sfumato.errors import UserError

_CHANNELS = 4
_WIDTH, _NARROW_WIDTH = 128, 64
_NUM_BLOCKS, _GROUP = 20, 4


class LatentNetwork(nn.Module):
    """Adds to latents what 20 residual blocks make of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(_CHANNELS, _WIDTH), nn.BatchNorm2d(_WIDTH)
        for number in range(1, _NUM_BLOCKS + 1):
            self.add_module(f"resblock{number}", ResidualBlock(_WIDTH))
        self.conv2, self.bn2 = _conv(_WIDTH, _NARROW_WIDTH), nn.BatchNorm2d(_NARROW_WIDTH)
        self.conv3, self.bn3 = _conv(_NARROW_WIDTH, _NARROW_WIDTH), nn.BatchNorm2d(_NARROW_WIDTH)
        self.conv_final = nn.Conv2d(_NARROW_WIDTH, _CHANNELS, 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return latents like the given ones, (B, 4, h, w), as the autoencoder encodes them."""
        x = functional.relu(self.bn1(self.conv1(latents)))
        for first in range(1, _NUM_BLOCKS + 1, _GROUP):
            x = x + self._group(x, first)
        x = functional.relu(self.bn2(self.conv2(x)))
        return latents + self.conv_final(self.bn3(self.conv3(x)))

    def _group(self, x: Tensor, first: int) -> Tensor:
        for number in range(first, first + _GROUP):
            x = self.get_submodule(f"resblock{number}")(x)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions with batch normalisation, and what they were given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(width, width), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = _conv(width, width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return features like x, (B, C, h, w)."""
        hidden = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(hidden)))


def load_network(path: Path) -> LatentNetwork:
    """Load the network, frozen and in eval mode, on the CPU in float32.

    In training mode its normalisation would go by the image at hand.

    Raises:
        UserError: the file is missing, broken or another model's.
    """
    with open_tensors(path) as file:
        state = dict(file.items())
    network = LatentNetwork()
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if own != {name: tensor.shape for name, tensor in state.items()}:
        raise UserError(f"{path} does not hold the {len(own)} tensors of a latent upscaler; check the path")
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
