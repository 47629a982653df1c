"""Control images at work: what ControlNets make of them is told to the denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import TakesControl


@dataclass(frozen=True)
class Control:
    """A control image and the network that reads it.

    Attributes:
        net: as `TakesControl.load_control` returns it.
        image: (N, 3, H, W) in [-1, 1]; of a batch of B rows each N rows are for these images, in turn.
        strength: what the network adds is multiplied by this.
    """

    net: nn.Module
    image: Tensor
    strength: float = 1.0


def steered(
    family: TakesControl,
    controls: Sequence[Control],
    noisy: Tensor,
    timesteps: Tensor,
    conditioning: Conditioning,
) -> Conditioning:
    """Return what a denoiser is told if it follows control images: what all networks add is summed up.

    Args:
        controls: those that are at work at this noise level.
        noisy, timesteps, conditioning: as `Family.predict` has them.
    """
    sums = dict(conditioning.control)
    for control in controls:
        image = control.image.repeat(len(noisy) // len(control.image), 1, 1, 1)
        added = family.control(control.net, image, noisy, timesteps, conditioning)
        for name, tensor in added.items():
            scaled = tensor if control.strength == 1 else control.strength * tensor
            sums[name] = sums[name] + scaled if name in sums else scaled
    return replace(conditioning, control=sums)
