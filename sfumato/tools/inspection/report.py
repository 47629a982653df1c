"""What is known of a data set, as text, JSON and a page show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from sfumato.data.images.buckets import Size

ALPHA = "alpha"
"""Stands for an image's own transparency as its mask."""

Severity = Literal["error", "warning", "note"]
"""Error: images are lost. Warning: probably not what was meant. Note: good to know."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong or surprising.

    Attributes:
        kind: a word for programs.
        message: one line that ends in a remedy.
        details: the files concerned, one printable line each.
    """

    kind: str
    severity: Severity
    message: str
    details: tuple[str, ...] = ()


@dataclass
class Shown:
    """One image as it is trained the first time.

    Attributes:
        dataset, index: its data set, and its place there, from 0.
        size, resized, bucket: (width, height): its own, before cropping, after.
        corner: (left, top) of the window in the resized image.
        is_flipped: whether it is mirrored.
        caption: as the text encoders get it.
        mask: its loss mask's file, or ALPHA; "" without one.
        is_validation: whether it is not trained, but measures the loss.
        tokens: the caption's length by text encoder.
        cut_off: the end of the caption that no text encoder reads.
        fault: why its pixels cannot be decoded; "" if they can, or nobody looked.
        alike: path of an image that looks like it; "" if there is none.
        group: number of its group of images that look alike, from 1; 0 if it is in none.
        bars: share of the image that bars of one colour take at opposite borders.
        sharpness: how much its levels change from pixel to pixel; 0 if nobody looked.
        thumbnail, mask_thumbnail: data URIs of the whole image and its mask; "" where not made.
    """

    path: str
    dataset: int
    index: int
    size: Size
    resized: Size
    bucket: Size
    corner: tuple[int, int]
    is_flipped: bool
    num_repeats: int
    is_reg: bool
    caption: str
    mask: str = ""
    is_validation: bool = False
    tokens: dict[str, int] = field(default_factory=dict)
    cut_off: str = ""
    fault: str = ""
    alike: str = ""
    group: int = 0
    bars: float = 0.0
    sharpness: float = 0.0
    thumbnail: str = ""
    mask_thumbnail: str = ""

    @property
    def scale(self) -> float:
        """How much it is enlarged; below 1 it is shrunk."""
        return max(new / old for new, old in zip(self.resized, self.size, strict=True))

    @property
    def loss(self) -> float:
        """The share of its area that is cropped away."""
        return 1 - (self.bucket[0] * self.bucket[1]) / (self.resized[0] * self.resized[1])


@dataclass(frozen=True)
class Bucket:
    """The images of one size.

    Attributes:
        num_shown: how often images of it are shown in an epoch.
        num_enlarged, num_shrunk: images that are resized up or down.
        mean_loss, most_loss: shares of their areas that are cropped away.
    """

    size: Size
    num_images: int
    num_shown: int
    num_enlarged: int
    num_shrunk: int
    mean_loss: float
    most_loss: float

    @classmethod
    def of(cls, size: Size, members: Sequence[Shown]) -> Bucket:
        """Count what falls into a bucket."""
        return cls(
            size=size,
            num_images=len(members),
            num_shown=sum(shown.num_repeats for shown in members),
            num_enlarged=sum(shown.scale > 1 for shown in members),
            num_shrunk=sum(shown.scale < 1 for shown in members),
            mean_loss=fmean(shown.loss for shown in members),
            most_loss=max(shown.loss for shown in members),
        )


@dataclass(frozen=True)
class Folder:
    """One subset."""

    path: str
    num_images: int
    num_repeats: int
    is_reg: bool


@dataclass(frozen=True)
class DataSet:
    """Images that are trained at the same resolution and batch size.

    Attributes:
        is_validation: whether they are not trained, but measure the loss.
    """

    resolution: Size
    has_buckets: bool
    batch_size: int
    num_batches: int
    folders: tuple[Folder, ...]
    buckets: tuple[Bucket, ...]
    is_validation: bool = False

    @property
    def occasion(self) -> str:
        """When all of them are shown, in words."""
        return "a measurement" if self.is_validation else "an epoch"


@dataclass(frozen=True)
class Lengths:
    """How long captions are for one text encoder, in tokens.

    Attributes:
        limit: the most that it reads.
        num_cut: captions that are longer.
    """

    limit: int
    least: int
    median: float
    most: int
    num_cut: int


@dataclass(frozen=True)
class DataReport:
    """All of it.

    Attributes:
        source: where the description of the data came from.
        seed: that augmentation and captions were drawn with.
        is_complete: whether images were decoded, too.
    """

    source: str
    seed: int
    is_complete: bool
    datasets: tuple[DataSet, ...]
    lengths: Mapping[str, Lengths]
    problems: tuple[Problem, ...]
    images: tuple[Shown, ...]

    @property
    def num_shown(self) -> int:
        """Showings in an epoch, repeats counted."""
        return sum(shown.num_repeats for shown in self.images if not shown.is_validation)

    @property
    def num_trained(self) -> int:
        """Images that are trained."""
        return len(self.images) - self.num_validation

    @property
    def num_validation(self) -> int:
        """Images that measure the loss."""
        return sum(shown.is_validation for shown in self.images)

    @property
    def num_serious(self) -> int:
        """Problems that are more than notes."""
        return sum(problem.severity != "note" for problem in self.problems)
