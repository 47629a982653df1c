"""Models and data sets by their names: the one place where a name becomes a path."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.tensors import SUFFIXES
from sfumato.errors import UserError
from sfumato.hub import cache
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.errors import explained, is_passing
from sfumato.hub.names import HubName, RepoKind, parse, reads_as_path
from sfumato.hub.repository import Repository, repository
from sfumato.hub.selection import AmbiguousError, Choice, Wanted, choose

logger = logging.getLogger(__name__)

_MOST_CANDIDATES = 12
_ANY_FILE = Wanted()


def located(
    name: str | Path | None, option: str, wanted: Wanted = _ANY_FILE, access: HubAccess = ANYBODY
) -> Path | None:
    """Return the path that a file, a folder or a model's name on the Hub stands for; None for no name.

    A path that exists wins. Otherwise what is needed is taken from the Hub's cache, or fetched into it. A
    text that is neither is returned as a path, so that whoever opens it complains.

    Args:
        option: what the name was given as, for messages.
        wanted: what is needed of a repository; a single file, or a folder of weights, where not given.

    Raises:
        UserError: the model cannot be fetched, several files could be meant, or it is another kind of model.
    """
    if not name:
        return None
    path = Path(name)
    on_hub = None if path.exists() else parse(path.as_posix())
    if on_hub is None:
        return path
    request = _Request(on_hub, _named(option, on_hub), wanted, access)
    kept = request.kept()
    if kept is not None and (kept.choice.is_sure or access.is_offline):
        return kept.path
    if reads_as_path(on_hub):
        return path
    return _fetched(request, kept)


def located_folder(name: str | Path, option: str, kind: RepoKind, access: HubAccess = ANYBODY) -> Path:
    """Return a folder, or one of a repository's with all that is in it; otherwise as `located`.

    Relative paths of folders look like names, so that those have to come with a revision: `user/name@main`,
    or `user/name@main/folder`.
    """
    path = Path(name)
    on_hub = None if path.exists() else parse(path.as_posix(), kind)
    if on_hub is None or not on_hub.revision:
        return path
    return fetch_folder(on_hub, _named(option, on_hub), access)


def fetch_folder(name: HubName, what: str, access: HubAccess = ANYBODY) -> Path:
    """Return a repository's folder of just this name, with all that is in it.

    Args:
        what: the option with its value; messages begin with it.

    Raises:
        UserError: it cannot be fetched, or there is no such folder.
    """
    if access.is_offline:
        folder = cache.snapshot(name)
        if folder is None or not (folder / name.path).is_dir():
            raise UserError(f"{what}, {_not_here(name)}")
        return folder / name.path
    with explained(what, name, access):
        found = repository(name, access)
        files = [file for file in found.sizes if file.startswith(f"{name.path}/" if name.path else "")]
        found.require_room(files)
        folder = found.download(files)
    if folder is None:
        raise UserError(f"{what}: {access.address(name)} has no folder {name.path}; check the name")
    return folder / name.path


def fetched_files(name: HubName, files: Iterable[str], what: str, access: HubAccess = ANYBODY) -> Path | None:
    """Return the cache's folder with those of some files that a repository has, fetched if need be.

    Args:
        what: what they are; messages begin with it.

    Returns:
        None if they are not in the cache and nothing may be fetched.

    Raises:
        UserError: they cannot be fetched.
    """
    if access.is_offline:
        return cache.snapshot(name)
    with explained(what, name, access):
        found = repository(name, access)
        there = [file for file in files if file in found.sizes]
        found.require_room(there)
        return found.download(there)


@dataclass(frozen=True)
class _Found:
    """Files in the cache."""

    folder: Path
    choice: Choice

    @property
    def path(self) -> Path:
        """The file or folder that was named."""
        return self.folder / self.choice.place


@dataclass(frozen=True)
class _Request:
    """A model that somebody wants: its name, the beginning of messages, and which files of it."""

    name: HubName
    what: str
    wanted: Wanted
    access: HubAccess

    def kept(self) -> _Found | None:
        """Return what the cache holds of the model, if that is all that is needed as far as it can tell."""
        folder = cache.snapshot(self.name)
        if folder is None:
            return None
        try:
            choice = choose(cache.listing(folder), self.name.path, self.wanted)
        except AmbiguousError:
            return None
        return _Found(folder, choice) if choice.is_whole else None

    def choice(self, found: Repository) -> Choice:
        """Return which files are needed, or raise UserError with those that could be meant."""
        try:
            return choose(found.sizes, self.name.path, self.wanted)
        except AmbiguousError as error:
            raise UserError(f"{self.what}: {_complaint(error, self.name, self.access)}") from None

    def check_headers(self, found: Repository, choice: Choice) -> None:
        """Raise UserError if the first part is another kind of model."""
        files = [name for name in choice.weights[: choice.num_checked] if name.endswith(SUFFIXES)]
        if self.wanted.refusal is None or not files:
            return
        shapes = {name: shape for file in files for name, shape in found.shapes(file).items()}
        if refusal := self.wanted.refusal(shapes):
            raise UserError(f"{self.what}: {refusal}")


def _fetched(request: _Request, kept: _Found | None) -> Path:
    """Fetch small files, then the headers of large ones, and if these are right, the rest."""
    if request.access.is_offline:
        raise UserError(f"{request.what}, {_not_here(request.name)}")
    found = _asked(request, is_needed=kept is None)
    if found is None and kept is not None:
        logger.warning("%s cannot be asked for now, so its copy in the cache is taken", request.name)
        return kept.path
    assert found is not None
    with explained(request.what, request.name, request.access):
        choice = request.choice(found)
        settings = found.download(choice.others)
        request.check_headers(found, choice)
        found.require_room(choice.weights)
        folder = found.download(choice.weights) or settings
    assert folder is not None  # a choice has files
    return folder / choice.place


def _asked(request: _Request, *, is_needed: bool) -> Repository | None:
    """Return what the Hub says of the repository; None if it is out of reach and that may be."""
    try:
        with explained(request.what, request.name, request.access):
            return repository(request.name, request.access)
    except UserError as error:
        if is_needed or error.__cause__ is None or not is_passing(error.__cause__):
            raise
        return None


def _named(option: str, name: HubName) -> str:
    return f"{option} is {name}, which is no path here"


def _not_here(name: HubName) -> str:
    command = f"hf download {name.repo}" + (f" --repo-type {name.kind}" if name.kind != "model" else "")
    return (
        "nor in the hub's cache, and --offline or HF_HUB_OFFLINE keeps it so; "
        f"leave that out, or fetch it with `{command}`"
    )


def _complaint(error: AmbiguousError, name: HubName, access: HubAccess) -> str:
    if not error.candidates:
        place = f" in {name.path}" if name.path else ""
        return f"{access.address(name)} has no weights{place} that can be read here; name another model"
    shown = ", ".join(f"{name.repo}/{file}" for file in error.candidates[:_MOST_CANDIDATES])
    rest = len(error.candidates) - _MOST_CANDIDATES
    return f"several files could be meant; give one of {shown}{f' and {rest} more' if rest > 0 else ''}"
