"""What can go wrong with the Hub, each as one line with the address or command that helps."""

from __future__ import annotations

import errno
import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from sfumato.errors import UserError, guest_code
from sfumato.hub.access import HubAccess
from sfumato.hub.names import HubName

LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
TOKENS = "https://huggingface.co/settings/tokens"
_FULL = ("ENOSPC", "EDQUOT")
_AGAIN = "start again a little later: every file that was fetched whole is kept"


@contextmanager
def explained(what: str, name: HubName, access: HubAccess) -> Iterator[None]:
    """Turn what the Hub's client raises in the block into one line for the user.

    Args:
        what: the option with its value; the message begins with it.
        name: the repository that is asked.
    """
    try:
        with guest_code(f"{what}: the Hub's client failed", f"see {access.address(name)}"):
            yield
    except UserError as error:
        line = explanation(error.__cause__, name, access) if error.__cause__ else None
        if line is None:
            raise
        raise UserError(f"{what}: {line}") from error.__cause__


def explanation(error: BaseException, name: HubName, access: HubAccess) -> str | None:
    """Return what an error of the Hub's client means and what helps; None for one that is not known."""
    error = _first_cause(error)
    return _of_repository(error, name, access) or _of_answer(error, name, access) or _of_machine(error)


def is_passing(error: BaseException) -> bool:
    """Return whether the same may well succeed a little later: the network's and the Hub's own troubles."""
    error = _first_cause(error)
    status = _status(error)
    return status == 429 or (status or 0) >= 500 or (status is None and _is_of_network(error))


def _first_cause(error: BaseException) -> BaseException:
    """Return the answer or the failure behind what the client made of it: it wraps some in others."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError | RuntimeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _of_repository(error: BaseException, name: HubName, access: HubAccess) -> str | None:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    address = access.address(name)
    if isinstance(error, GatedRepoError):
        return f"it is gated; accept its licence at {address}, and {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no {name.kind} {address}, or it is private; check the name, or {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return f"{address} has no revision {name.branch}; see its branches and commits there"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{address} has no {name.path or 'such file'}; see {address}/tree/{name.branch}"
    return None


def _of_answer(error: BaseException, name: HubName, access: HubAccess) -> str | None:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    status = _status(error)
    if isinstance(error, LocalTokenNotFoundError):
        return f"there is no access token; {LOGIN} ({TOKENS})"
    if status == 401:
        return f"the access token is not valid; make one at {TOKENS}, and {LOGIN}"
    if status == 403:
        return f"the access token may not do that at {access.address(name)}; make another at {TOKENS}"
    if status is not None and (status == 429 or status >= 500):
        return f"{access.endpoint} answers {status}; {_AGAIN}"
    if isinstance(error, HfHubHTTPError):
        reason = " ".join((error.server_message or "").split())
        return f"{access.endpoint} answers {status}{reason and f' ({reason})'}; see {access.address(name)}"
    return None


def _of_machine(error: BaseException) -> str | None:
    from huggingface_hub import constants
    from huggingface_hub.errors import OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is fetched; unset it, or give a path"
    if isinstance(error, OSError) and errno.errorcode.get(error.errno or 0) in _FULL:
        place = error.filename or constants.HF_HUB_CACHE
        return f"the disk of {place} is full; free some space, or set HF_HOME to a folder elsewhere"
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return f"the download broke off; {_AGAIN}"
    if _is_of_network(error):
        return f"the Hub cannot be reached ({type(error).__name__}); check the network, or give a path"
    return None


def _status(error: BaseException) -> int | None:
    from huggingface_hub.errors import HfHubHTTPError

    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _is_of_network(error: BaseException) -> bool:
    # The base of all errors of the HTTP library, which is another one in another version of the client.
    base = importlib.import_module("huggingface_hub.errors").HTTPError
    return isinstance(error, base | ConnectionError | TimeoutError)
