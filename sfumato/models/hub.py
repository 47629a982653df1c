"""Models that were fetched from the Hugging Face hub before, found by their name."""

from __future__ import annotations

from pathlib import Path


def located(name: str | None) -> Path | None:
    """Return the path that a file, a folder or a hub's model name stands for; None for no name.

    Nothing is fetched. A name that is neither a path nor in the hub's local cache is returned as a path, so
    that whoever opens it complains.
    """
    if not name:
        return None
    path = Path(name)
    return path if path.exists() else _cached(name) or path


def _cached(name: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
