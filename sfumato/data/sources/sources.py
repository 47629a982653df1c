"""What lies in a data set's folders: images, their sizes, their captions, and what is wrong with them.

Only names and headers are read, so that a mistake shows in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import NamedTuple

from sfumato.config.run.data.partners import ROLES, PartnerRole
from sfumato.data.captions import caption_files
from sfumato.data.captions.caption_files import CaptionFile, UnreadableCaptionError
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images import partners
from sfumato.data.images.buckets import Size
from sfumato.data.images.images import BrokenImageError, ImageHeader, is_image, read_header, stem
from sfumato.data.sources import cache_info, latent_only_images, metadata_file, size_checks, validation
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.image_table import ImageTable, State, TrainingImage
from sfumato.data.sources.index import Index, Status
from sfumato.data.sources.same_names import name_twins
from sfumato.errors import UserError
from sfumato.log import counted, plural

_MAKE_THEM = ", or let `sfumato generate --for_regularisation` make them"
_CAPTION_SUFFIXES = (".txt", ".caption", ".tags", ".cap")


def read(plan: DatasetPlan, complaints: Complaints, index: Index | None = None) -> ImageTable:
    """Return the images to train on; see `read_split`."""
    return read_split(plan, complaints, index)[0]


def read_split(
    plan: DatasetPlan, complaints: Complaints, index: Index | None = None
) -> tuple[ImageTable, ImageTable]:
    """Return the images to train on, and the validation images.

    The first are of all subsets, regularisation images repeated as often as the others need.

    Args:
        index: what was found out about the files before; whatever is new is added.

    Raises:
        UserError: there is no image, or `complaints` is strict and something is wrong.
    """
    index = index or Index()
    found, held_back = ImageTable(), ImageTable()
    for images in _read_subsets(plan, complaints, index, is_reg=False):
        if plan.validation_split:
            trained, rest = validation.split(list(images), plan.validation_split, plan.validation_seed)
            found.extend(trained)
            held_back.extend(image._replace(num_repeats=1) for image in rest)
        else:
            found.extend(images)
    if plan.validation_split and found and not held_back:
        complaints.warn(
            f"validation_split {plan.validation_split} of {counted(len(found), 'image')} is less than one "
            "image of each subset: there is no validation"
        )
    if not found and not held_back:
        raise UserError(_why_none(plan))
    reg = list(chain.from_iterable(_read_subsets(plan, complaints, index, is_reg=True))) if found else []
    of_reg = chain.from_iterable(image.partners.values() for image in reg)
    if not plan.skipped_size:  # what was left out on purpose leaves partners over
        _name_surplus(plan, chain(found.partners, held_back.partners, of_reg), complaints)
    found.extend(_balance(reg, sum(found.repeats), complaints))
    return found, held_back


def _why_none(plan: DatasetPlan) -> str:
    folders = ", ".join(str(subset.source) for subset in plan.subsets if not subset.is_reg)
    if not folders:
        return "every subset of the data set is_reg; add one of the images to train on"
    others = "num_repeats and skip_image_resolution" if plan.skipped_size else "num_repeats"
    return f"no images to train on in {folders}; check image_dir and {others}"


def _read_subsets(
    plan: DatasetPlan, complaints: Complaints, index: Index, *, is_reg: bool
) -> Iterator[Iterator[TrainingImage]]:
    for number, subset in enumerate(plan.subsets):
        if subset.is_reg == is_reg:
            found = _read_subset(number, subset, plan, complaints, index)
            found = size_checks.checked(found, subset, complaints, index)
            if subset.cache_info:
                found = cache_info.kept(found, str(subset.image_dir), complaints)
            yield size_checks.larger(found, plan.skipped_size, subset, complaints)


def _read_subset(
    number: int, subset: SubsetPlan, plan: DatasetPlan, complaints: Complaints, index: Index
) -> Iterator[TrainingImage]:
    if subset.num_repeats < 1:
        complaints.warn(f"{subset.source} is ignored: num_repeats is {subset.num_repeats}; use 1 or more")
        return
    is_file = subset.metadata_file is not None
    found = (_in_metadata if is_file else _in_folder)(subset, plan, complaints, index)
    headers, repeats = _headers(found.paths, subset, plan, complaints, index), subset.num_repeats
    rows = zip(headers, *found, strict=True)
    for (header, state), path, caption, mask, control, train_size in rows:
        if header is not None and caption is not None:
            size = header.size
            image = latent_only_images.image_of(path, size)
            yield TrainingImage(image, size, caption, number, repeats, state, mask, control, train_size)


class _Found(NamedTuple):
    """Images before their headers are read, in columns; a caption is None if it cannot be read."""

    paths: Sequence[str] = ()
    captions: Sequence[str | None] = ()
    masks: Sequence[str | None] = ()
    controls: Sequence[str | None] = ()
    train_sizes: Sequence[Size | None] = ()


def _in_metadata(subset: SubsetPlan, plan: DatasetPlan, complaints: Complaints, _index: Index) -> _Found:
    assert subset.metadata_file is not None
    entries = metadata_file.entries(
        subset.metadata_file,
        subset.image_dir,
        subset.captions,
        complaints.warn,
        takes_latents=plan.takes_latents,
        latents_ending=plan.latents_ending,
    )
    unit, sizes = plan.size_multiple, [entry.train_size for entry in entries]
    no_partners = [None] * len(entries)
    return _Found(
        [entry.path for entry in entries],
        [entry.caption for entry in entries],
        no_partners,
        no_partners,
        [size and (size[0] // unit * unit, size[1] // unit * unit) for size in sizes],
    )


def _in_folder(subset: SubsetPlan, _plan: DatasetPlan, complaints: Complaints, index: Index) -> _Found:
    folder, key = str(subset.image_dir), f"image_dir{_MAKE_THEM}" if subset.is_reg else "image_dir"
    names = _list(folder, complaints, key)
    if names is None:
        return _Found()
    images = sorted(filter(is_image, names))
    if not images:
        complaints.warn(f"{folder} has no images and is ignored; check {key}")
        return _Found()
    paired = {role: _paired(role, images, subset, complaints) for role in subset.partner_dirs}
    images = [name for name in images if all(name in found for found in paired.values())]
    captions = _captions(folder, images, names, subset, complaints, index)
    start = os.path.join(folder, "")
    paths, no_sizes = [start + name for name in images], [None] * len(images)
    masks, controls = ([paired.get(role, {}).get(name) for name in images] for role in ROLES)
    return _Found(paths, captions, masks, controls, no_sizes)


def _paired(
    role: PartnerRole, images: Sequence[str], subset: SubsetPlan, complaints: Complaints
) -> dict[str, str]:
    """Return the partner of each image in the subset's folder for that role."""
    folder = str(subset.partner_dirs[role])
    names = _list(folder, complaints, _key_of(role)) or set()
    paired = partners.pairs(images, folder, names)
    if lonely := partners.lonely(images, paired):
        complaints.warn(
            f"{len(lonely)} of {counted(len(images), 'image')} in {subset.image_dir} "
            f"{plural(len(lonely), 'has', 'have')} no image of the same name in {folder} and "
            f"{plural(len(lonely), 'is', 'are')} left out, the first is {lonely[0]}"
        )
    return paired


def _name_surplus(plan: DatasetPlan, used: Iterable[str], complaints: Complaints) -> None:
    folders: dict[str, PartnerRole] = {
        str(path): role for subset in plan.subsets for role, path in subset.partner_dirs.items()
    }
    used = {path for path in used if path} if folders else set()
    for folder, role in folders.items():
        names = _list(folder, complaints, _key_of(role)) or set()
        if surplus := partners.surplus(used, folder, names):
            complaints.warn(
                f"{counted(len(surplus), 'image')} in {folder} {plural(len(surplus), 'belongs', 'belong')} "
                f"to no image that is trained, the first is {surplus[0]}"
            )


def _key_of(role: PartnerRole) -> str:
    return f"{role}_dir or conditioning_data_dir"


def _list(folder: str, complaints: Complaints, key: str) -> set[str] | None:
    """Return the names of a folder's files; None, after saying so, if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if not entry.is_dir()}
    except OSError as error:
        complaints.warn(f"{folder} is ignored: {error.strerror}; check {key}")
        return None


def _headers(
    paths: Sequence[str], subset: SubsetPlan, plan: DatasetPlan, complaints: Complaints, index: Index
) -> Iterator[tuple[ImageHeader | None, State]]:
    """Yield the header of each image, or None if it cannot be used, and the state of its file."""
    least, animated = plan.buckets.shortest_side, []
    recalled = index.recall_all(zip(repeat("picture"), paths))
    for path, (status, finding) in zip(paths, recalled, strict=True):
        header = ImageHeader.parse(finding or "") or _header(path, status, complaints, index)
        if header and min(header.size) < least:
            width, height = header.size
            complaints.leave_out(path, f"{width}x{height} is smaller than bucket_reso_steps {least}")
            header = None
        if header and header.is_animated:
            animated.append(os.path.basename(path))
        yield header, (status.st_size, status.st_mtime_ns) if status else (0, 0)
    if animated:
        number, verb = counted(len(animated), "image"), plural(len(animated), "is", "are")
        message = f"{number} in {subset.source} {verb} animated, the first is {animated[0]}"
        complaints.note(f"{message}: of each, the first frame is trained", animated, "animated")


def _header(path: str, status: Status, complaints: Complaints, index: Index) -> ImageHeader | None:
    """Read a header that is not known yet, or say why that cannot be done."""
    try:
        read = latent_only_images.read_header if path.endswith(latent_only_images.SUFFIX) else read_header
        header = read(path)
    except BrokenImageError as error:
        complaints.leave_out(path, str(error))
        return None
    index.learn("picture", path, str(header), status)
    return header


def _captions(
    folder: str,
    images: Sequence[str],
    names: set[str],
    subset: SubsetPlan,
    complaints: Complaints,
    index: Index,
) -> list[str | None]:
    """Return the caption of each image; None if there is one that cannot be read."""
    extension = subset.caption_extension
    files = [caption_files.caption_file(name, names, extension) for name in images]
    captions = _read_captions(folder, images, files, subset, complaints, index)
    if missing := [name for name, file in zip(images, files, strict=True) if not file]:
        _name_missing(folder, images, names, subset, missing, complaints)
    name_twins(folder, images, complaints)
    empty = [file for file, text in zip(files, captions, strict=True) if file and text == ""]
    if empty:
        complaints.warn(
            f"{counted(len(empty), 'caption file')} in {folder} {plural(len(empty), 'is', 'are')} empty, "
            f"the first is {empty[0]}",
            empty,
            "empty captions",
        )
    return captions


def _read_captions(
    folder: str,
    images: Sequence[str],
    files: Sequence[str | None],
    subset: SubsetPlan,
    complaints: Complaints,
    index: Index,
) -> list[str | None]:
    guessed: dict[str, list[str]] = {}
    captions: list[str | None] = []
    start, fallback = os.path.join(folder, ""), subset.class_tokens or ""
    recalled = index.recall_all(("caption", start + file) for file in files if file)
    for name, file in zip(images, files, strict=True):
        if file is None:
            captions.append(fallback)
            continue
        status, finding = next(recalled)
        try:
            found = CaptionFile.parse(finding) if finding else _caption(start + file, status, index)
        except UnreadableCaptionError as error:
            complaints.leave_out(start + name, f"its caption {file} {error}")
            captions.append(None)
            continue
        if found.encoding in caption_files.GUESSED:
            guessed.setdefault(found.encoding, []).append(file)
        captions.append(found.caption(all_lines=subset.captions.enable_wildcard))
    for encoding, named in guessed.items():
        complaints.warn(
            f"{counted(len(named), 'caption file')} in {folder} {plural(len(named), 'is', 'are')} not UTF-8 "
            f"and read as {encoding}, the first is {named[0]}; UTF-8 is safe",
            named,
            "encoding",
        )
    return captions


def _caption(path: str, status: Status, index: Index) -> CaptionFile:
    """Read a caption file that is not known yet."""
    found = caption_files.read(path)
    index.learn("caption", path, str(found), status)
    return found


def _name_missing(
    folder: str,
    images: Sequence[str],
    names: set[str],
    subset: SubsetPlan,
    missing: Sequence[str],
    complaints: Complaints,
) -> None:
    """Say how many captions are missing and where they are, unless class tokens stand in."""
    extension = subset.caption_extension
    verb = plural(len(missing), "has", "have")
    message = f"{len(missing)} of {counted(len(images), 'image')} in {folder} {verb} no {extension} file"
    others = sorted({*_CAPTION_SUFFIXES, extension.upper()} - {extension})
    number, best = max((_count(images, names, other), other) for other in others)
    if number > len(images) - len(missing):
        message = f"{message}; {number} {plural(number, 'has', 'have')} a {best} file: "
        message += f"did you mean caption_extension {best}?"
    elif subset.class_tokens:
        return
    else:
        first = missing[0]
        message = f"{message} and no class tokens: nothing but the image is trained; "
        message += f"write {stem(first)}{extension} beside {first}, or set class_tokens"
    complaints.warn(message, missing, "missing captions")


def _count(images: Sequence[str], names: set[str], extension: str) -> int:
    return sum(caption_files.caption_file(image, names, extension) is not None for image in images)


def _balance(reg: Sequence[TrainingImage], num_train: int, complaints: Complaints) -> list[TrainingImage]:
    """Raise the repeats of regularisation images one by one until they are as many as the others."""
    used, total = [], 0
    for image in reg:
        if total >= num_train:
            break
        used.append(image.num_repeats)
        total += image.num_repeats
    if unused := len(reg) - len(used):
        complaints.warn(
            f"{unused} of {counted(len(reg), 'regularisation image')} "
            f"{plural(unused, 'is', 'are')} not used: too many"
        )
    rounds, rest = divmod(max(num_train - total, 0), len(used)) if used else (0, 0)
    extra = [rounds + (index < rest) for index in range(len(used))]
    return [p._replace(num_repeats=n + more) for p, n, more in zip(reg, used, extra, strict=False)]
