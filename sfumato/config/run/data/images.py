"""How images are sized, framed and varied."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least, sides
from sfumato.config.rule import Company, Rule, Values, excludes, given, needs
from sfumato.errors import UserError


@dataclass(frozen=True)
class ImageConfig:
    """Sizes and augmentation."""

    resolution: str | None = None
    """Training size in pixels: `1024`, or `width,height`. With buckets it is the area that matters."""

    enable_bucket: bool = False
    """Group images by shape, so that each keeps about its own aspect ratio instead of being cropped."""

    min_bucket_reso: int = 256
    """Shortest side of a bucket, in pixels."""

    max_bucket_reso: int = 1024
    """Longest side of a bucket, in pixels."""

    bucket_reso_steps: int = 64
    """Sides of buckets are multiples of this number of pixels."""

    bucket_no_upscale: bool = False
    """Never enlarge an image: buckets are made from the images' own sizes."""

    color_aug: bool = False
    """Vary colours slightly each time. Excludes cached latents."""

    flip_aug: bool = False
    """Mirror every second image at random. Not for subjects whose left and right differ."""

    face_crop_aug_range: str | None = None
    """Crop around faces, the crop's short side so many faces long: `2.0,4.0`. Needs file names that end in
    `_<centre x>_<centre y>_<width>_<height>`. Excludes cached latents."""

    random_crop: bool = False
    """Crop at a random place instead of the centre; without buckets out of the image in its own size.
    Excludes cached latents."""

    alpha_mask: bool = False
    """Use the transparency of images as loss mask: what is transparent is not learned. `masked_loss` is not
    needed for that."""

    resize_interpolation: (
        Literal["lanczos", "nearest", "bilinear", "linear", "bicubic", "cubic", "area"] | None
    ) = None
    """Filter for resizing; area for shrinking and lanczos for enlarging when not given."""

    train_inpainting: bool = False
    """Teach the model to repaint a part of an image: it is shown a mask, drawn anew each time, and the rest.
    For Stable Diffusion. Excludes cached latents."""

    skip_image_resolution: str | None = None
    """Leave out images of no more pixels than this size has: `768`, or `width,height`."""

    def __post_init__(self) -> None:
        at_least(self, 1, "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps")
        for name in ("resolution", "skip_image_resolution"):
            if (size := getattr(self, name)) is not None:
                sides(name, size)
        if self.face_crop_aug_range is not None and not self._is_face_range():
            raise UserError(
                f"--face_crop_aug_range is {self.face_crop_aug_range!r}; "
                "write two numbers above 0, the smaller first, as 2.0,4.0"
            )

    @property
    def face_range(self) -> tuple[float, ...] | None:
        """`face_crop_aug_range` as numbers."""
        if self.face_crop_aug_range is None:
            return None
        return tuple(float(part) for part in self.face_crop_aug_range.split(","))

    def _is_face_range(self) -> bool:
        try:
            limits = self.face_range or ()
        except ValueError:
            return False
        return len(limits) == 2 and 0 < limits[0] <= limits[1]

    @property
    def size(self) -> tuple[int, int] | None:
        """The training size as (width, height) in pixels, where one was given."""
        if self.resolution is None:
            return None
        return sides("resolution", self.resolution)


def sides_in_order(*among: Company) -> tuple[Rule, ...]:
    """Return the rules that the shortest side of buckets does not exceed the longest.

    Args:
        among: where they hold, if not always.
    """

    def are_in_order(values: Values) -> bool:
        return values["min_bucket_reso"] <= values["max_bucket_reso"]

    limits = {
        "min_bucket_reso": "a value not above --max_bucket_reso",
        "max_bucket_reso": "a value not below --min_bucket_reso",
    }
    return tuple(
        needs([name], reason=text, among=among, unless=are_in_order) for name, text in limits.items()
    )


RULES = (
    *sides_in_order(given("enable_bucket")),
    excludes(
        ["train_inpainting"],
        ["cache_latents", "cache_latents_to_disk"],
        "what masks leave of an image is another one each time; leave the cache out",
    ),
    excludes(["train_inpainting"], ["dataset_class"], "masks are drawn for images in folders"),
)
"""What these options mean to others."""
