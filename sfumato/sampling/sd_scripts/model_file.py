"""The file that `--ckpt` names, perhaps by a pattern."""

from __future__ import annotations

import glob
from pathlib import Path

from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.hub.access import access_for
from sfumato.hub.fetching import located
from sfumato.models.components.hub_files import any_model
from sfumato.models.components.stable_diffusion.checkpoint_options import CheckpointOptions
from sfumato.models.registry.checkpoint_choice import run_with_checkpoint

_OPTION = "--ckpt"


def with_model(run: Run) -> Run:
    """Return the run with the family of its model, and the model as its base.

    Raises:
        UserError: there is no such model, several fit the pattern, or it is not what the user insists on.
    """
    name = run[CheckpointOptions].ckpt
    if not name:
        raise UserError(f"{_OPTION} is not given; name a model: a file, a folder, or a name on the Hub")
    return with_model_of(run, _matched(name), _OPTION)


def with_model_of(run: Run, name: str, option: str) -> Run:
    """Return the run with the family of a model, and the model as its base.

    Args:
        name: a file, a folder, or a name on the Hub.
        option: what it was given as, for messages.

    Raises:
        UserError: there is no such model, or it is not what the user insists on.
    """
    path = located(name, option, any_model(), access_for(run))
    assert path is not None
    return run_with_checkpoint(run, path, option)


def _matched(pattern: str) -> str:
    """Return the one file that fits a pattern; a name that is no pattern, as it is."""
    if Path(pattern).exists() or not glob.has_magic(pattern):
        return pattern
    found = sorted(glob.glob(pattern))
    if len(found) != 1:
        seen = f"{len(found)} files, {found[0]} and others" if found else "no file"
        raise UserError(f"{_OPTION} is {pattern}, which fits {seen}; write a pattern that fits one")
    return found[0]
