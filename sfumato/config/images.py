"""How pictures are sized, framed and varied."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.errors import UserError


@dataclass(frozen=True)
class ImageConfig:
    """Sizes and augmentation."""

    resolution: str | None = None
    """Training size in pixels: `1024`, or `width,height`. With buckets it is the area that matters."""

    enable_bucket: bool = False
    """Group pictures by shape, so that each keeps about its own aspect ratio instead of being cropped."""

    min_bucket_reso: int = 256
    """Shortest side of a bucket, in pixels."""

    max_bucket_reso: int = 1024
    """Longest side of a bucket, in pixels."""

    bucket_reso_steps: int = 64
    """Sides of buckets are multiples of this number of pixels."""

    bucket_no_upscale: bool = False
    """Never enlarge a picture: buckets are made from the pictures' own sizes."""

    color_aug: bool = False
    """Vary colours slightly each time. Excludes cached latents."""

    flip_aug: bool = False
    """Mirror every second picture at random. Not for subjects whose left and right differ."""

    face_crop_aug_range: str | None = None
    """Crop around faces, enlarged at random in this range: `2.0,4.0`. Needs file names with face data."""

    random_crop: bool = False
    """Crop at a random place instead of the centre. Excludes cached latents."""

    alpha_mask: bool = False
    """Use the transparency of pictures as loss mask: what is transparent is not learned."""

    resize_interpolation: (
        Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"] | None
    ) = None
    """Filter for resizing; area for shrinking and lanczos for enlarging when not given."""

    def __post_init__(self) -> None:
        at_least(self, 1, "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
        if self.resolution is not None:
            self._check_resolution(self.resolution)

    @property
    def size(self) -> tuple[int, int] | None:
        """The training size as (width, height) in pixels, where one was given."""
        if self.resolution is None:
            return None
        sides = [int(side) for side in self.resolution.split(",")]
        return sides[0], sides[-1]

    @staticmethod
    def _check_resolution(resolution: str) -> None:
        sides = resolution.split(",")
        if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
            raise UserError(
                f"--resolution is {resolution!r}; write pixels as 1024 or width,height as 1024,768"
            )
