"""Whether pictures have what their subset's settings need: masks that fit them, faces in their names."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from sfumato.data.config.plan import SubsetPlan
from sfumato.data.images.buckets import Size
from sfumato.data.images.framing import face_of
from sfumato.data.images.images import BrokenPictureError, ImageHeader, read_header
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.image_table import Picture
from sfumato.data.sources.index import Index
from sfumato.log import counted, plural

# Two sizes of one picture, rounded to whole pixels, differ by less.
_MOST_DIFFERENCE = 0.02


def checked(
    pictures: Iterable[Picture], subset: SubsetPlan, complaints: Complaints, index: Index
) -> Iterator[Picture]:
    """Yield the pictures without those whose mask or control picture is broken; name what does not fit."""
    total, stretched, faceless = 0, [], []
    for picture in pictures:
        total += 1
        if picture.conditioning:
            try:
                size = _size(picture.conditioning, index)
            except BrokenPictureError as error:
                complaints.leave_out(picture.path, f"{picture.conditioning} beside it is broken: {error}")
                continue
            if not _are_alike(size, picture.size):
                stretched.append(os.path.basename(picture.conditioning))
        if subset.face_crop_aug_range and face_of(picture.path) is None:
            faceless.append(os.path.basename(picture.path))
        yield picture
    if stretched:
        complaints.warn(
            f"{len(stretched)} of {counted(total, 'picture')} in {subset.conditioning_data_dir} "
            f"{plural(len(stretched), 'is', 'are')} stretched to the proportions of what "
            f"{plural(len(stretched), 'it belongs', 'they belong')} to, the first is {stretched[0]}",
            stretched,
        )
    if faceless:
        complaints.warn(
            f"{len(faceless)} of {counted(total, 'picture')} of {subset.source} "
            f"{plural(len(faceless), 'has', 'have')} no face in the name "
            f"(_<centre x>_<centre y>_<width>_<height>), so that face_crop_aug_range does nothing to "
            f"{plural(len(faceless), 'it', 'them')}, the first is {faceless[0]}",
            faceless,
        )


def _size(path: str, index: Index) -> Size:
    return ImageHeader.parse(index.remember("picture", path, lambda it: str(read_header(it)))).size


def _are_alike(size: Size, other: Size) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < _MOST_DIFFERENCE
