"""Tag the images of a folder with a tagger in an ONNX file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.captioning import CaptioningConfig, TaggingConfig
from sfumato.console import printable
from sfumato.hub.access import access_for
from sfumato.tools import onnx_models
from sfumato.tools.captioning.caption_store import CaptionStore, OneFile
from sfumato.tools.captioning.describing import describe, files_beside
from sfumato.tools.captioning.tags import tag_names, tag_table, tagger_files
from sfumato.tools.captioning.tags.tagger import Tagger
from sfumato.tools.captioning.wording import Wording

logger = logging.getLogger(__name__)


def tag(run: Run) -> None:
    """Write the tags of every image.

    Raises:
        UserError: there is no tagger or no image, or a file cannot be read or written.
    """
    options, tagging = run[CaptioningConfig], run[TaggingConfig]
    files = tagger_files.located(tagging, access_for(run))
    table = tag_table.read(files.table)
    model = onnx_models.load(files.model, "tagging", "give --force_download to fetch it again")
    tagger = Tagger(model, table, tag_names.written(table, tagging), tagging)
    separator = tagging.caption_separator
    extended = partial(_appended, separator=separator) if tagging.append_tags else None
    counts = describe(tagger, Wording(options, separator, extended), _store(options, tagging))
    if tagging.frequency_tags:
        lines = "\n".join(f"{printable(name)}: {count}" for name, count in counts.most_common())
        logger.info("images with each tag:\n%s", lines)


def _store(options: CaptioningConfig, tagging: TaggingConfig) -> CaptionStore:
    if tagging.output_path and not options.dry_run:
        return OneFile(Path(tagging.output_path), is_continued=options.skip_existing)
    return files_beside(options)


def _appended(tags: Sequence[str], before: str, separator: str) -> list[str]:
    """Return the tags of a caption, and behind them those of new ones that it lacks."""
    had = tag_names.listed(before, separator)
    return [*had, *(tag for tag in tags if tag not in had)]
