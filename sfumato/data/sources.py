"""What lies in a data set's folders: pictures, their sizes, their captions, and what is wrong with them.

Only names and headers are read, so that a mistake shows in seconds.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from sfumato.data import conditioning
from sfumato.data.buckets import Size
from sfumato.data.images import SUFFIXES, BrokenPictureError, read_size
from sfumato.data.plan import DatasetPlan, SubsetPlan
from sfumato.data.table import Picture, PictureTable
from sfumato.errors import UserError

_CAPTION_SUFFIXES = (".txt", ".caption", ".tags", ".cap")
# A face detector appends `_<centre x>_<centre y>_<width>_<height>`; the caption may lack these four.
_NUM_FACE_PARTS = 4

logger = logging.getLogger(__name__)


@dataclass
class Complaints:
    """What is wrong with the data: warnings, or errors where the user asked for strictness.

    Attributes:
        broken: (path, reason) of each picture that is left out.
    """

    strict: bool = False
    broken: list[tuple[str, str]] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def warn(self, message: str) -> None:
        """Log `message`, or raise it."""
        if self.strict:
            raise UserError(message)
        if message not in self._said:
            logger.warning(message)
        self._said.add(message)

    def leave_out(self, path: str, reason: str) -> None:
        """Note a picture that cannot be used, and name it; once, though several data sets may have it."""
        if (path, reason) not in self.broken:
            self.broken.append((path, reason))
        self.warn(f"{path} is left out: {reason}")


def read(plan: DatasetPlan, complaints: Complaints) -> PictureTable:
    """Return the pictures of all subsets, regularisation pictures repeated as often as the others need.

    Raises:
        UserError: nothing to train on is left, or `complaints` is strict and something is wrong.
    """
    found = PictureTable()
    found.extend(_read_subsets(plan, complaints, is_reg=False))
    if not found:
        folders = ", ".join(str(subset.image_dir) for subset in plan.subsets if not subset.is_reg)
        raise UserError(
            f"no pictures to train on in {folders or 'the data set'}; check image_dir and num_repeats"
        )
    reg = list(_read_subsets(plan, complaints, is_reg=True))
    _name_surplus(plan, chain(found.conditionings, (p.conditioning for p in reg)), complaints)
    found.extend(_balance(reg, sum(found.repeats), complaints))
    return found


def _read_subsets(plan: DatasetPlan, complaints: Complaints, *, is_reg: bool) -> Iterator[Picture]:
    for index, subset in enumerate(plan.subsets):
        if subset.is_reg == is_reg:
            yield from _read_subset(index, subset, plan, complaints)


def _read_subset(
    index: int, subset: SubsetPlan, plan: DatasetPlan, complaints: Complaints
) -> Iterator[Picture]:
    folder = str(subset.image_dir)
    if subset.num_repeats < 1:
        complaints.warn(f"{folder} is ignored: num_repeats is {subset.num_repeats}; use 1 or more")
        return
    names = _list(folder, complaints)
    images = sorted(name for name in names if os.path.splitext(name)[1].lower() in SUFFIXES)
    if not images:
        complaints.warn(f"{folder} has no pictures and is ignored; check image_dir")
        return
    partners = _partners(images, subset, complaints)
    if subset.conditioning_data_dir:
        images = [name for name in images if name in partners]
    captions = _captions(folder, images, names, subset, complaints)
    sizes = _sizes(folder, images, plan, complaints)
    for name, (path, size), caption in zip(images, sizes, captions, strict=True):
        if size is not None:
            yield Picture(path, size, caption, index, subset.num_repeats, partners.get(name))


def _partners(images: Sequence[str], subset: SubsetPlan, complaints: Complaints) -> dict[str, str]:
    """Return the control picture or mask of each picture, where the subset has a folder of them."""
    if subset.conditioning_data_dir is None:
        return {}
    folder = str(subset.conditioning_data_dir)
    names = _list(folder, complaints)
    partners = conditioning.pairs(images, folder, names)
    if lonely := conditioning.lonely(images, partners):
        complaints.warn(
            f"{len(lonely)} of {len(images)} pictures in {subset.image_dir} have no picture of the same name "
            f"in {folder} and are left out, the first is {lonely[0]}"
        )
    return partners


def _name_surplus(plan: DatasetPlan, partners: Iterable[str | None], complaints: Complaints) -> None:
    folders = dict.fromkeys(str(s.conditioning_data_dir) for s in plan.subsets if s.conditioning_data_dir)
    used = {partner for partner in partners if partner} if folders else set()
    for folder in folders:
        if surplus := conditioning.surplus(used, folder, _list(folder, complaints)):
            complaints.warn(
                f"{len(surplus)} pictures in {folder} belong to no picture that is trained, "
                f"the first is {surplus[0]}"
            )


def _list(folder: str, complaints: Complaints) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError as error:
        complaints.warn(f"{folder} is ignored: {error.strerror}; check image_dir")
        return set()


def _sizes(
    folder: str, images: Sequence[str], plan: DatasetPlan, complaints: Complaints
) -> Iterator[tuple[str, Size | None]]:
    """Yield each path with its size, or None if the picture cannot be used."""
    least = plan.buckets.step if plan.buckets.enabled and plan.buckets.no_upscale else 1
    for name in images:
        path = os.path.join(folder, name)
        try:
            size = read_size(path)
        except BrokenPictureError as error:
            complaints.leave_out(path, str(error))
            yield path, None
            continue
        if min(size) < least:
            complaints.leave_out(path, f"{size[0]}x{size[1]} is smaller than bucket_reso_steps {least}")
        yield path, size if min(size) >= least else None


def _captions(
    folder: str, images: Sequence[str], names: set[str], subset: SubsetPlan, complaints: Complaints
) -> list[str]:
    extension = subset.caption_extension
    files = [_caption_file(name, names, extension) for name in images]
    fallback = subset.class_tokens or ""
    captions = [_read_caption(os.path.join(folder, file), subset) if file else fallback for file in files]
    num_missing = files.count(None)
    if num_missing and (message := _missing(folder, images, names, subset, num_missing)):
        complaints.warn(message)
    empty = [file for file, caption in zip(files, captions, strict=True) if file and not caption.strip()]
    if empty:
        complaints.warn(f"{len(empty)} caption files in {folder} are empty, the first is {empty[0]}")
    return captions


def _caption_file(image: str, names: set[str], extension: str) -> str | None:
    base = os.path.splitext(image)[0]
    if base + extension in names:
        return base + extension
    parts = base.split("_")
    if len(parts) > _NUM_FACE_PARTS:
        shorter = "_".join(parts[:-_NUM_FACE_PARTS]) + extension
        return shorter if shorter in names else None
    return None


def _read_caption(path: str, subset: SubsetPlan) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if subset.captions.enable_wildcard:
        return "\n".join(line.strip() for line in lines if line.strip())
    return lines[0].strip() if lines else ""


def _missing(
    folder: str, images: Sequence[str], names: set[str], subset: SubsetPlan, num_missing: int
) -> str | None:
    """Say how many captions are missing, and where they are; None where class tokens stand in."""
    extension = subset.caption_extension
    message = f"{num_missing} of {len(images)} pictures in {folder} have no {extension} file"
    counts = Counter(
        {other: _count(images, names, other) for other in _CAPTION_SUFFIXES if other != extension}
    )
    best, number = counts.most_common(1)[0]
    if number > len(images) - num_missing:
        return f"{message}; {number} have a {best} file: did you mean caption_extension {best}?"
    return (
        None if subset.class_tokens else f"{message} and no class tokens: they are trained without a caption"
    )


def _count(images: Sequence[str], names: set[str], extension: str) -> int:
    return sum(_caption_file(image, names, extension) is not None for image in images)


def _balance(reg: Sequence[Picture], num_train: int, complaints: Complaints) -> list[Picture]:
    """Raise the repeats of regularisation pictures one by one until they are as many as the others."""
    used, total = [], 0
    for picture in reg:
        if total >= num_train:
            break
        used.append(picture.num_repeats)
        total += picture.num_repeats
    if len(used) < len(reg):
        complaints.warn(
            f"{len(reg) - len(used)} of {len(reg)} regularisation pictures are not used: too many"
        )
    rounds, rest = divmod(max(num_train - total, 0), len(used)) if used else (0, 0)
    extra = [rounds + (index < rest) for index in range(len(used))]
    return [replace(p, num_repeats=n + more) for p, n, more in zip(reg, used, extra, strict=False)]
