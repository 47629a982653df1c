"""Describe all images of a folder: which, in which batches, and what becomes of the captions."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from sfumato.config.tools.pictures.captioning import CaptioningConfig
from sfumato.console import printable
from sfumato.data.captions.caption_files import UnreadableCaptionError
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.same_names import name_twins
from sfumato.errors import UserError
from sfumato.log import counted, progress
from sfumato.tools.captioning import journal
from sfumato.tools.captioning.caption_store import CaptionStore, FilesBeside
from sfumato.tools.captioning.captioner import Captioner
from sfumato.tools.captioning.journal import Journal
from sfumato.tools.captioning.ready_images import ReadyImage, ready
from sfumato.tools.captioning.wording import Wording
from sfumato.tools.preparation import records

SHOWN = 10
"""Images of a dry run."""

logger = logging.getLogger(__name__)


def files_beside(options: CaptioningConfig) -> CaptionStore:
    """Return the store with a file beside each image."""
    before = Journal(Path(options.train_data_dir), is_continued=options.skip_existing)
    return FilesBeside(options.suffix, before)


def undone(options: CaptioningConfig) -> str:
    """Undo the last call with this folder; return what was done."""
    restored, removed = journal.undo(Path(options.train_data_dir))
    return f"{counted(restored, 'caption')} brought back, {removed} removed"


def describe(captioner: Captioner, wording: Wording, store: CaptionStore) -> Counter[str]:
    """Give every image a caption; return how many images each part was given to.

    Raises:
        UserError: there are no images, or none can be read.
    """
    options, complaints, counts = wording.options, Complaints(), Counter[str]()
    paths, size = _to_do(options, store, complaints), _batch_size(captioner, options)
    images = ready(paths, captioner.prepared, options.max_data_loader_n_workers)
    with progress(total=len(paths), unit="image", title="captioning") as bar:
        for batch in _batches(_whole(images, complaints, bar.update), size):
            for image, parts in zip(batch, captioner.captions([one.value for one in batch]), strict=True):
                _keep(image, parts, wording, store, complaints)
                counts.update(parts)
            bar.update(len(batch))
    if paths and len(complaints.broken) == len(paths):
        raise UserError(f"no image in {options.train_data_dir} can be read")
    if not options.dry_run:
        store.close()
    logger.info("%s described", counted(len(paths) - len(complaints.broken), "image"))
    return counts


def _to_do(options: CaptioningConfig, store: CaptionStore, complaints: Complaints) -> list[Path]:
    found = records.images(options.train_data_dir, recursive=options.recursive)
    name_twins(options.train_data_dir, [str(path) for path in found], complaints)
    missing = [path for path in found if not options.skip_existing or not _has_caption(path, store)]
    if len(missing) < len(found):
        logger.info("%d of %s have captions already", len(found) - len(missing), counted(len(found), "image"))
    return missing[:SHOWN] if options.dry_run else missing


def _has_caption(path: Path, store: CaptionStore) -> bool:
    try:
        return store.caption(path) is not None
    except UnreadableCaptionError:
        return True


def _batch_size(captioner: Captioner, options: CaptioningConfig) -> int:
    fixed, asked = captioner.fixed_batch, options.batch_size
    if fixed and fixed != asked:
        logger.warning("--batch_size is %d, but the model takes %s together", asked, counted(fixed, "image"))
    return fixed or asked


def _whole(
    images: Iterable[ReadyImage], complaints: Complaints, is_done: Callable[[int], object]
) -> Iterator[ReadyImage]:
    """Yield the images that can be read, and complain of the others."""
    for image in images:
        if image.fault:
            complaints.leave_out(str(image.path), image.fault)
            is_done(1)
        else:
            yield image


def _batches(images: Iterable[ReadyImage], size: int) -> Iterator[Sequence[ReadyImage]]:
    remaining = iter(images)
    while batch := list(islice(remaining, size)):
        yield batch


def _keep(
    image: ReadyImage, parts: Sequence[str], wording: Wording, store: CaptionStore, complaints: Complaints
) -> None:
    try:
        before = store.caption(image.path) if wording.extended else None
    except UnreadableCaptionError as error:
        complaints.warn(f"the caption of {image.path} {error}; it is left as it is")
        return
    text = wording.text(parts, before)
    if wording.options.debug or wording.options.dry_run:
        logger.info("%s: %s", printable(str(image.path)), printable(text))
    if not wording.options.dry_run:
        store.put(image.path, image.size, text)
