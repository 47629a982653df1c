"""Models that were fetched from the Hugging Face hub before, found by their name."""

from __future__ import annotations

from pathlib import Path

from sfumato.checkpoints.pickles import SUFFIXES as PICKLES
from sfumato.checkpoints.tensors import SUFFIXES


def located(name: str | None) -> Path | None:
    """Return the path that a file, a folder or a hub's model name stands for; None for no name.

    Nothing is fetched. A name that is neither a path nor in the hub's local cache is returned as a path, so
    that whoever opens it complains.
    """
    if not name:
        return None
    path = Path(name)
    return path if path.exists() else _cached(name) or path


def is_name(path: Path) -> bool:
    """Return whether a path that does not exist reads like a model's name on the hub: `owner/model`."""
    is_pair = len(path.parts) == 2 and not path.is_absolute() and path.parts[0] not in ("..", "~")
    return is_pair and not path.parent.exists() and path.suffix.lower() not in {*SUFFIXES, *PICKLES}


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
