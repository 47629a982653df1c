"""Settings of deep shrink."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.errors import UserError


@dataclass(frozen=True)
class DeepShrink:
    """Shrink features inside the UNet while the image's composition forms.

    Attributes:
        depth_1, depth_2: blocks before which features are shrunk; `depth_2` None is never.
        timesteps_1, timesteps_2: down to which that goes on, in [0, 1000).
        ratio: of the sides.
    """

    depth_1: int = 3
    timesteps_1: int = 650
    depth_2: int | None = None
    timesteps_2: int = 650
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if self.ratio <= 0:
            raise UserError(f"deep shrink's ratio is {self.ratio}; use a number above 0, as 0.5")
