"""The pictures of a data set in columns.

An object for each picture would take several times the memory, and once more in every worker: looking at an
object writes its reference count, so that a forked process gets its own copy of the page.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, overload

from sfumato.data.buckets import Size


class Picture(NamedTuple):
    """One picture of a data set.

    Attributes:
        path: a string: with a hundred thousand pictures, Path objects would cost more than all the rest.
        size: upright (width, height).
        caption: one line, or several where wildcards are enabled.
        subset: index of its subset in the data set's plan.
        num_repeats: how often it is seen in an epoch; for regularisation pictures after balancing.
        conditioning: path of its control picture or loss mask, where its subset has a folder of them.
        train_size: (width, height) of its bucket, where that is given for each picture.
    """

    path: str
    size: Size
    caption: str
    subset: int
    num_repeats: int
    conditioning: str | None = None
    train_size: Size | None = None


@dataclass
class Texts(Sequence[str]):
    """Strings, one after the other in one block of bytes."""

    data: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q", [0]))

    def append(self, text: str) -> None:
        """Add a string; file names that are not valid text are strings too."""
        self.data += text.encode("utf-8", "surrogatepass")
        self.ends.append(len(self.data))

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


@dataclass
class PictureTable(Sequence[Picture]):
    """Pictures by index; a `Picture` is made when it is asked for.

    Attributes:
        paths, captions, conditionings, widths, heights, subsets, repeats: what each picture has of these;
            no conditioning is "".
        train_widths, train_heights: empty unless a size to train at is given for every picture.
    """

    paths: Texts = field(default_factory=Texts)
    captions: Texts = field(default_factory=Texts)
    conditionings: Texts = field(default_factory=Texts)
    widths: array[int] = field(default_factory=_numbers)
    heights: array[int] = field(default_factory=_numbers)
    train_widths: array[int] = field(default_factory=_numbers)
    train_heights: array[int] = field(default_factory=_numbers)
    subsets: array[int] = field(default_factory=_numbers)
    repeats: array[int] = field(default_factory=_numbers)

    def extend(self, pictures: Iterable[Picture]) -> None:
        """Add pictures at the end."""
        for picture in pictures:
            self.paths.append(picture.path)
            self.captions.append(picture.caption)
            self.conditionings.append(picture.conditioning or "")
            self.widths.append(picture.size[0])
            self.heights.append(picture.size[1])
            self._take_train_size(picture.train_size)
            self.subsets.append(picture.subset)
            self.repeats.append(picture.num_repeats)

    @property
    def sizes(self) -> Iterator[Size]:
        """Yield the upright (width, height) of each picture."""
        return zip(self.widths, self.heights, strict=True)

    def train_size(self, index: int) -> Size | None:
        """Return the (width, height) that a picture is to be trained at, if that is given."""
        return (self.train_widths[index], self.train_heights[index]) if self.has_train_sizes else None

    @property
    def has_train_sizes(self) -> bool:
        """Whether it is given for the pictures what size each is trained at."""
        return bool(self.train_widths)

    def _take_train_size(self, size: Size | None) -> None:
        """Add a size, or forget all sizes if there is none."""
        if size is not None and len(self.train_widths) == len(self):
            self.train_widths.append(size[0])
            self.train_heights.append(size[1])
        else:
            del self.train_widths[:], self.train_heights[:]

    def __len__(self) -> int:
        return len(self.repeats)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Picture(
            path=self.paths[index],
            size=(self.widths[index], self.heights[index]),
            caption=self.captions[index],
            subset=self.subsets[index],
            num_repeats=self.repeats[index],
            conditioning=self.conditionings[index] or None,
            train_size=self.train_size(index),
        )
