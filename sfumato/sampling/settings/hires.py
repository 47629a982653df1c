"""Settings of a second stage: an image is made small, enlarged, and made anew from there."""

from __future__ import annotations

from dataclasses import dataclass

from sfumato.errors import UserError


@dataclass(frozen=True)
class Hires:
    """How an image is made in two sizes.

    Attributes:
        scale: sides of the first stage as a share of the image's, in (0, 1).
        steps: of the first stage; None is as many as the image has.
        strength: of a start image in the first stage; None is the image's. The second stage has the image's.
        upscaler: what enlarges: a name of `upscaling.UPSCALERS`, or of those that a pipeline is given.
    """

    scale: float = 0.5
    steps: int | None = None
    strength: float | None = None
    upscaler: str = "lanczos"

    def __post_init__(self) -> None:
        if not 0 < self.scale < 1:
            raise UserError(
                f"hires scale is {self.scale}; it is the first stage's share of the sides, between 0 and 1"
            )
        if self.steps is not None and self.steps < 1:
            raise UserError(f"hires steps is {self.steps}; use 1 or more")
