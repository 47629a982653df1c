"""Where a tagger's files are: in a folder, or fetched by the tagger's name and kept below `--model_dir`."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config.tools.pictures.captioning import TaggingConfig
from sfumato.errors import UserError
from sfumato.hub import names
from sfumato.hub.access import HubAccess
from sfumato.hub.fetching import fetched_files

_KERAS = "saved_model.pb"


@dataclass(frozen=True)
class TaggerFiles:
    """The model, and the table of its tags."""

    model: Path
    table: Path


_LAYOUTS = (("model.onnx", "selected_tags.csv"), ("model_optimized.onnx", "tag_mapping.json"))
"""File names of the usual taggers, and of those that lie in a folder of their repository."""


def located(options: TaggingConfig, access: HubAccess) -> TaggerFiles:
    """Return the files of a tagger, fetched if need be.

    Raises:
        UserError: they are not there, or cannot be fetched.
    """
    if Path(options.repo_id).is_dir():
        return _in_folder(Path(options.repo_id)) or _refused(f"--repo_id {options.repo_id}", options.repo_id)
    folder = Path(options.model_dir, options.repo_id.replace("/", "_"))
    if not options.force_download and (found := _in_folder(folder)):
        return found
    return _fetched(options, folder, access)


def _in_folder(folder: Path) -> TaggerFiles | None:
    """Return the files in a folder, or in one below it, as clients of the Hub leave them there."""
    places = [folder, *sorted(path for path in folder.glob("*") if path.is_dir())]
    for place in places:
        for model, table in _LAYOUTS:
            if (place / model).is_file() and (place / table).is_file():
                return TaggerFiles(place / model, place / table)
    return None


def _fetched(options: TaggingConfig, folder: Path, access: HubAccess) -> TaggerFiles:
    """Fetch a tagger, and copy it from the Hub's cache below `--model_dir`, where other programs look."""
    what = f"--repo_id {options.repo_id}"
    name = names.parse(options.repo_id)
    if name is None:
        raise UserError(f"{what} is neither a folder nor a name on the Hub; write user/name")
    files = [f"{name.path}/{file}" if name.path else file for layout in _LAYOUTS for file in layout]
    snapshot = fetched_files(name, files, what, access)
    found = _in_folder(snapshot / name.path) if snapshot else None
    if found is None:
        return _refused(what, folder)
    for file in (found.model, found.table):
        with file.open("rb") as source, atomic_file(folder / file.name, file.stat().st_size) as target:
            shutil.copyfileobj(source, target)
    return TaggerFiles(folder / found.model.name, folder / found.table.name)


def _refused(what: str, folder: str | Path) -> TaggerFiles:
    if Path(folder, _KERAS).exists():
        raise UserError(
            f"{folder} holds the tagger for TensorFlow, which is not used here; "
            "give --force_download to fetch its model.onnx"
        )
    wanted = " or ".join(" with ".join(layout) for layout in _LAYOUTS)
    raise UserError(f"{what} has no {wanted} here; name another tagger, or go without --offline")
