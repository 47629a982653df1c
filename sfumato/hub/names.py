"""Names on the Hub: `user/name[@revision][/file or sub-folder]`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sfumato.checkpoints.pickles import SUFFIXES as PICKLES
from sfumato.checkpoints.tensors import SUFFIXES

RepoKind = Literal["model", "dataset", "space"]
KINDS: Mapping[str, RepoKind] = {"model": "model", "dataset": "dataset", "space": "space"}

_WORD = r"\w(?:[\w.-]*\w)?"
_REVISION = r"refs/(?:pr|convert)/\w+|[^/@\\]+"
_NAME = re.compile(rf"({_WORD}/{_WORD})(?:@({_REVISION}))?(?:/(.+?))?/?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """What a name stands for.

    Attributes:
        repo: `user/name`.
        revision: branch, tag or commit; None is the main branch.
        path: file or folder in the repository; empty is all of it.
    """

    repo: str
    revision: str | None = None
    path: str = ""
    kind: RepoKind = "model"

    @property
    def branch(self) -> str:
        """The revision, given or not."""
        return self.revision or "main"

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{revision}/{self.path}".rstrip("/")


def parse(text: str, kind: RepoKind = "model") -> HubName | None:
    """Return what `user/name[@revision][/path]` names; None where a text cannot be such a name."""
    match = _NAME.fullmatch(text)
    if match is None or ".." in text:
        return None
    repo, revision, path = match.groups()
    return HubName(repo, revision, path or "", kind)


def reads_as_path(name: HubName) -> bool:
    """Return whether a name that is no existing path looks like one all the same.

    It does if it begins with a folder of this machine, or is a model's file in a folder.
    """
    is_file = not name.path and Path(name.repo).suffix.lower() in {*SUFFIXES, *PICKLES}
    return is_file or Path(name.repo).parent.exists()
