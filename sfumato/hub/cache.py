"""What of the Hub is on this machine already, in the cache that its client keeps for all programs."""

from __future__ import annotations

from pathlib import Path

from sfumato.hub.names import HubName


def snapshot(name: HubName) -> Path | None:
    """Return the folder with what was fetched of a repository's revision, if anything, be it not all."""
    folder = repository(name)
    reference = folder / "refs" / name.branch
    commit = reference.read_text("utf-8").strip() if reference.is_file() else name.branch
    found = folder / "snapshots" / commit
    return found if found.is_dir() else None


def repository(name: HubName) -> Path:
    """Return the folder that the cache has for a repository."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE, f"{name.kind}s--{name.repo.replace('/', '--')}")


def listing(folder: Path) -> list[str]:
    """Return the names of all files in a folder, with `/`."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def has_blob(name: HubName, sha256: str) -> bool:
    """Return whether a large file's content is there under whatever name."""
    return (repository(name) / "blobs" / sha256).is_file()
