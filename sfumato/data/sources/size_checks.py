"""Whether images have what the settings need: masks that fit them, faces in their names, enough pixels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from sfumato.config.run.data.partners import ROLES, PartnerRole
from sfumato.data.config.plan import SubsetPlan
from sfumato.data.images.buckets import Size
from sfumato.data.images.framing import face_of
from sfumato.data.images.images import BrokenImageError, ImageHeader, read_header
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.image_table import TrainingImage
from sfumato.data.sources.index import Index
from sfumato.log import counted, plural

# Two sizes of one image, rounded to whole pixels, differ by less.
_MOST_DIFFERENCE = 0.02


def checked(
    images: Iterable[TrainingImage], subset: SubsetPlan, complaints: Complaints, index: Index
) -> Iterator[TrainingImage]:
    """Yield the images without those whose mask or control image is broken; name what does not fit."""
    total, faceless = 0, []
    stretched: dict[PartnerRole, list[str]] = {role: [] for role in ROLES}
    for image in images:
        total += 1
        partner = ""
        try:
            for role, partner in image.partners.items():
                if not _are_alike(_size(partner, index), image.size):
                    stretched[role].append(os.path.basename(partner))
        except BrokenImageError as error:
            complaints.leave_out(image.path, f"{partner} beside it is broken: {error}")
            continue
        if subset.face_crop_aug_range and face_of(image.path) is None:
            faceless.append(os.path.basename(image.path))
        yield image
    for role, names in stretched.items():
        if names:
            complaints.warn(
                f"{len(names)} of {counted(total, 'image')} in {subset.partner_dirs[role]} "
                f"{plural(len(names), 'is', 'are')} stretched to the proportions of what "
                f"{plural(len(names), 'it belongs', 'they belong')} to, the first is {names[0]}",
                names,
            )
    if faceless:
        complaints.warn(
            f"{len(faceless)} of {counted(total, 'image')} of {subset.source} "
            f"{plural(len(faceless), 'has', 'have')} no face in the name "
            f"(_<centre x>_<centre y>_<width>_<height>), so that face_crop_aug_range does nothing to "
            f"{plural(len(faceless), 'it', 'them')}, the first is {faceless[0]}",
            faceless,
        )


def larger(
    images: Iterable[TrainingImage], size: Size | None, subset: SubsetPlan, complaints: Complaints
) -> Iterator[TrainingImage]:
    """Yield the images that have more pixels than `size`, all where it is None; say how many do not."""
    limit = size[0] * size[1] if size else 0
    total, small = 0, []
    for image in images:
        total += 1
        if image.size[0] * image.size[1] > limit:
            yield image
        else:
            small.append(os.path.basename(image.path))
    if size and small:
        complaints.note(
            f"{len(small)} of {counted(total, 'image')} in {subset.source} "
            f"{plural(len(small), 'is', 'are')} left out: no larger than skip_image_resolution "
            f"{size[0]}x{size[1]}, the first is {small[0]}",
            small,
            "small images",
        )


def _size(path: str, index: Index) -> Size:
    known = ImageHeader.parse(index.remember("picture", path, lambda it: str(read_header(it))))
    return (known or read_header(path)).size


def _are_alike(size: Size, other: Size) -> bool:
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) < _MOST_DIFFERENCE
