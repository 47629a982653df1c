"""The images of a data set in columns.

An object for each image would take several times the memory, and once more in every worker: looking at an
object writes its reference count, so that a forked process gets its own copy of the page.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, islice, pairwise, repeat
from typing import NamedTuple, overload

from sfumato.config.run.data.partners import PartnerRole
from sfumato.data.images.buckets import Size

State = tuple[int, int]
"""What tells one file from another: its size in bytes, the time of its last change in ns."""

_ROWS = 1000
"""Images that become columns together: lists of them are fast to make, and of so few take little memory."""


class TrainingImage(NamedTuple):
    """One image of a data set.

    Attributes:
        path: a string: with a hundred thousand images, Path objects would cost more than all the rest.
        size: upright (width, height).
        caption: one line, or several where wildcards are enabled.
        subset: index of its subset in the data set's plan.
        num_repeats: how often it is seen in an epoch; for regularisation images after balancing.
        state: of its file, from before its header was read.
        mask, control: path of its loss mask and of its control image, where its subset has a folder of them.
        train_size: (width, height) of its bucket, where that is given for each image.
    """

    path: str
    size: Size
    caption: str
    subset: int
    num_repeats: int
    state: State
    mask: str | None = None
    control: str | None = None
    train_size: Size | None = None

    @property
    def partners(self) -> dict[PartnerRole, str]:
        """The paths of the partner images that there are, by role."""
        paths: dict[PartnerRole, str | None] = {"mask": self.mask, "control": self.control}
        return {role: path for role, path in paths.items() if path}


@dataclass
class Texts(Sequence[str]):
    """Strings, one after the other in one block of bytes."""

    data: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def extend(self, texts: Iterable[str]) -> None:
        """Add strings; file names that are not valid text are strings too."""
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self.ends.extend(islice(accumulate(map(len, encoded), initial=len(self.data)), 1, None))
        self.data += b"".join(encoded)

    def __iter__(self) -> Iterator[str]:
        return (self.data[start:end].decode("utf-8", "surrogatepass") for start, end in pairwise(self.ends))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = index if index >= 0 else index + len(self)
        if at < 0:
            raise IndexError(index)
        return self.data[self.ends[at] : self.ends[at + 1]].decode("utf-8", "surrogatepass")


def _numbers() -> array[int]:
    return array("i")


def _large_numbers() -> array[int]:
    return array("q")


@dataclass
class ImageTable(Sequence[TrainingImage]):
    """Images by index; a `TrainingImage` is made when it is asked for.

    Attributes:
        paths, captions, masks, widths, heights, subsets, repeats: what each has of these; no mask is "".
        controls: path of each control image, or ""; empty unless there is one.
        num_bytes, times_ns: the state of each image's file.
        train_widths, train_heights: empty unless a size to train at is given for every image.
    """

    paths: Texts = field(default_factory=Texts)
    captions: Texts = field(default_factory=Texts)
    masks: Texts = field(default_factory=Texts)
    controls: Texts = field(default_factory=Texts)
    widths: array[int] = field(default_factory=_numbers)
    heights: array[int] = field(default_factory=_numbers)
    train_widths: array[int] = field(default_factory=_numbers)
    train_heights: array[int] = field(default_factory=_numbers)
    subsets: array[int] = field(default_factory=_numbers)
    repeats: array[int] = field(default_factory=_numbers)
    num_bytes: array[int] = field(default_factory=_large_numbers)
    times_ns: array[int] = field(default_factory=_large_numbers)

    def extend(self, images: Iterable[TrainingImage]) -> None:
        """Add images at the end."""
        rows = iter(images)
        while some := list(islice(rows, _ROWS)):
            self._take_train_sizes([image.train_size for image in some])
            self._take_controls([image.control or "" for image in some])
            self.paths.extend([image.path for image in some])
            self.captions.extend([image.caption for image in some])
            self.masks.extend([image.mask or "" for image in some])
            self.widths.extend([image.size[0] for image in some])
            self.heights.extend([image.size[1] for image in some])
            self.subsets.extend([image.subset for image in some])
            self.repeats.extend([image.num_repeats for image in some])
            self.num_bytes.extend([image.state[0] for image in some])
            self.times_ns.extend([image.state[1] for image in some])

    @property
    def partners(self) -> Iterator[str]:
        """Yield the paths of all masks and control images; "" where an image has none."""
        return chain(self.masks, self.controls)

    @property
    def sizes(self) -> Iterator[Size]:
        """Yield the upright (width, height) of each image."""
        return zip(self.widths, self.heights, strict=True)

    @property
    def train_sizes(self) -> Iterator[Size | None]:
        """Yield the (width, height) that each image is to be trained at, or None for ever."""
        given = zip(self.train_widths, self.train_heights, strict=True)
        return given if self.has_train_sizes else repeat(None)

    def train_size(self, index: int) -> Size | None:
        """Return the (width, height) that an image is to be trained at, if that is given."""
        return (self.train_widths[index], self.train_heights[index]) if self.has_train_sizes else None

    def control(self, index: int) -> str | None:
        """Return the path of an image's control image, if it has one."""
        return (self.controls[index] if self.controls else "") or None

    @property
    def has_train_sizes(self) -> bool:
        """Whether it is given for the images what size each is trained at."""
        return bool(self.train_widths)

    def _take_train_sizes(self, sizes: Sequence[Size | None]) -> None:
        """Add the sizes of new images, or forget all sizes if one is missing."""
        given = [size for size in sizes if size is not None]
        if len(given) == len(sizes) and len(self.train_widths) == len(self):
            self.train_widths.extend([width for width, _ in given])
            self.train_heights.extend([height for _, height in given])
        else:
            del self.train_widths[:], self.train_heights[:]

    def _take_controls(self, paths: Sequence[str]) -> None:
        """Add the control images of new images; the column takes no memory until there is one."""
        if self.controls or any(paths):
            self.controls.extend([""] * (len(self) - len(self.controls)))
            self.controls.extend(paths)

    def __len__(self) -> int:
        return len(self.repeats)

    @overload
    def __getitem__(self, index: int) -> TrainingImage: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingImage]: ...
    def __getitem__(self, index: int | slice) -> TrainingImage | list[TrainingImage]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return TrainingImage(
            path=self.paths[index],
            size=(self.widths[index], self.heights[index]),
            caption=self.captions[index],
            subset=self.subsets[index],
            num_repeats=self.repeats[index],
            state=(self.num_bytes[index], self.times_ns[index]),
            mask=self.masks[index] or None,
            control=self.control(index),
            train_size=self.train_size(index),
        )
