"""A training state on the Hub: `user/name/folder[:revision[:type]]`, as `--resume` has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sfumato.errors import UserError
from sfumato.hub.access import HubAccess
from sfumato.hub.fetching import fetch_folder
from sfumato.hub.names import KINDS, HubName, parse


def fetched_state(text: str, access: HubAccess) -> Path:
    """Return the folder of just that state, fetched if need be.

    Raises:
        UserError: the text names no folder of a repository, or it cannot be fetched.
    """
    return fetch_folder(_name(text), f"--resume is {text}", access)


def _name(text: str) -> HubName:
    place, *rest = text.split(":")
    revision, kind = (*rest, "", "")[:2]
    name = parse(place)
    known = KINDS.get(kind or "model")
    if name is None or not name.path or known is None or len(rest) > 2:
        raise UserError(
            f"--resume is {text}; with --resume_from_huggingface write it as "
            f"user/name/folder, user/name/folder:revision or user/name/folder:revision:type "
            f"(type: {', '.join(KINDS)})"
        )
    return replace(name, revision=revision or name.revision, kind=known)
