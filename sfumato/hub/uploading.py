"""The repository for what a run saves: checked before the run, filled in order, never in its way."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.config.run.output.hub import HubConfig
from sfumato.errors import UserError
from sfumato.hub.access import HubAccess
from sfumato.hub.bars import without_bars
from sfumato.hub.errors import LOGIN, TOKENS, explained, is_passing
from sfumato.hub.names import KINDS, HubName, parse
from sfumato.log import counted

logger = logging.getLogger(__name__)

WAITS_S = (2.0, 8.0, 30.0)
"""Seconds before each new try of an upload that failed for the network's or the Hub's sake."""

_STATIC = "static"
"""What a new space runs: nothing."""


@dataclass(frozen=True)
class Destination:
    """A repository and a folder in it.

    Attributes:
        folder: empty is the root.
        is_private: whether a repository that is made is.
    """

    name: HubName
    folder: str
    is_private: bool
    access: HubAccess

    def place(self, file: str) -> str:
        """Return a file's or folder's name in the repository."""
        return f"{self.folder}/{file}" if self.folder else file

    def check(self) -> None:
        """Find out whether the token is one that may write there.

        Raises:
            UserError: it is none, or the Hub cannot be reached.
        """
        with explained(self._what, self.name, self.access):
            account = self.access.api().whoami()
        if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise UserError(
                f"{self._what}: the access token may only read; make another at {TOKENS}, and {LOGIN}"
            )
        owner = self.name.repo.partition("/")[0]
        names = [account["name"], *(group["name"] for group in account.get("orgs", []))]
        if owner.casefold() not in map(str.casefold, names):
            raise UserError(
                f"{self._what}: the access token is that of {names[0]}, who is no member of {owner}; "
                f"give {names[0]}/{self.name.repo.partition('/')[2]}, or {LOGIN} as somebody else"
            )

    def make(self) -> None:
        """Make the repository if there is none.

        Raises:
            UserError: it cannot be made.
        """
        repo, kind = self.name.repo, self.name.kind
        with explained(self._what, self.name, self.access):
            api = self.access.api()
            if not api.repo_exists(repo, repo_type=kind):
                sdk = _STATIC if kind == "space" else None
                api.create_repo(repo, repo_type=kind, private=self.is_private, exist_ok=True, space_sdk=sdk)
                word = "private" if self.is_private else "public"
                logger.info("made the %s repository %s", word, self.access.address(self.name))

    def upload(self, path: Path, place: str) -> None:
        """Upload a file or a folder once, whatever the client raises."""
        asked: dict[str, Any] = {"repo_id": self.name.repo, "repo_type": self.name.kind}
        asked |= {"path_in_repo": place, "commit_message": f"Upload {place}"}
        with without_bars():
            if path.is_dir():
                self.access.api().upload_folder(folder_path=path, **asked)
            else:
                self.access.api().upload_file(path_or_fileobj=path, **asked)

    def command(self, path: Path, place: str) -> str:
        """Return the command that uploads what was left."""
        kind = ["--repo-type", self.name.kind] if self.name.kind != "model" else []
        return shlex.join(["hf", "upload", self.name.repo, str(path), place, *kind])

    @property
    def _what(self) -> str:
        return f"--huggingface_repo_id is {self.name.repo}"


def destination_for(config: HubConfig, access: HubAccess) -> Destination | None:
    """Return where a run's results go; None if nowhere.

    Raises:
        UserError: an option is none of those that the Hub knows.
    """
    if not config.huggingface_repo_id:
        return None
    kind = KINDS.get(config.huggingface_repo_type or "model")
    if kind is None:
        raise UserError(
            f"--huggingface_repo_type is {config.huggingface_repo_type}; give one of {', '.join(KINDS)}"
        )
    name = parse(config.huggingface_repo_id, kind)
    if name is None or name.path or name.revision:
        raise UserError(f"--huggingface_repo_id is {config.huggingface_repo_id}; write it as user/name")
    if access.is_offline:
        raise UserError(
            f"--huggingface_repo_id is {name.repo}, but --offline or HF_HUB_OFFLINE is set; leave one out"
        )
    is_private = config.huggingface_repo_visibility != "public"
    return Destination(name, (config.huggingface_path_in_repo or "").strip("/"), is_private, access)


@dataclass
class Uploads:
    """What was uploaded to one destination, and what was not.

    Attributes:
        wait: sleeps for so many seconds.
        failed: paths with their names in the repository.
    """

    destination: Destination
    wait: Callable[[float], None] = time.sleep
    num_tried: int = 0
    failed: dict[Path, str] = field(default_factory=dict)

    def upload(self, path: Path, place: str, original: Path | None = None) -> None:
        """Upload a file or a folder, again after a while if need be; warn if it fails, and go on.

        Args:
            place: its name in the repository.
            original: what the path is another name of, for messages.
        """
        self.num_tried += 1
        started = time.monotonic()
        try:
            self._tried(path, place)
        except UserError as error:
            self.failed[original or path] = place
            logger.warning("not uploaded: %s", error)
            return
        self.failed.pop(original or path, None)
        address = self.destination.access.address(self.destination.name)
        logger.info("uploaded %s to %s in %.0f s", place, address, time.monotonic() - started)

    def report(self) -> None:
        """Say what was not uploaded, and how to make up for it."""
        if not self.failed:
            return
        left = [(path, place) for path, place in self.failed.items() if path.exists()]
        names = ", ".join(self.failed.values())
        command = " && ".join(self.destination.command(path, place) for path, place in left)
        remedy = f"; upload them with: {command}" if left else ""
        what = counted(self.num_tried, "upload")
        logger.warning("%d of %s failed: %s%s", len(self.failed), what, names, remedy)

    def _tried(self, path: Path, place: str) -> None:
        waits = iter(WAITS_S)
        while error := self._trouble(path, place):
            wait_s = next(waits, None)
            if wait_s is None or error.__cause__ is None or not is_passing(error.__cause__):
                raise error
            logger.info("%s; trying again in %.0f s", error, wait_s)
            self.wait(wait_s)

    def _trouble(self, path: Path, place: str) -> UserError | None:
        """Upload once; return what went wrong."""
        destination = self.destination
        try:
            with explained(place, destination.name, destination.access):
                destination.upload(path, place)
        except UserError as error:
            return error
        return None
