"""Whether all layers of an adapter file have a place in a model, so that none is lost without a word."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path

from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.targets import AdapterTarget

logger = logging.getLogger(__name__)

_OWNER = re.compile(r"[A-Za-z0-9]+_((?:unet|te\d?)(?=_))?")
_SHOWN = 3


def owners_of(targets: Iterable[AdapterTarget]) -> set[str]:
    """Return what adapter files call the parts that these layers belong to."""
    return {target.name.partition("_")[0] for target in targets}


def require_placed(
    path: Path,
    layers: Collection[str],
    placed: Collection[str],
    owners: Collection[str],
    *,
    is_partial: bool = False,
    remedy: str = "use another file",
) -> None:
    """See that layers of a file have found their places.

    Those of a part that is not there, such as a text encoder that is not given, are counted in a warning.

    Args:
        path: the file, for messages.
        layers: names of all its layers.
        placed: those of them that fit.
        owners: what files call the parts of the model that are there; see `owners_of`.
        is_partial: the user allows that layers are left out.
        remedy: what to do besides, for messages.

    Raises:
        UserError: none has a place, or one of a part that is there has none.
    """
    rest = [name for name in layers if name not in placed]
    lost = [name for name in rest if _belongs(name, owners)]
    number = counted(len(rest), "layer fits", "layers fit")
    if rest and len(rest) == len(layers):
        raise UserError(f"{path} fits no layer of this model: it holds {rest[0]} ...; use another file")
    if lost and not is_partial:
        shown = ", ".join(lost[:_SHOWN]) + (" ..." if len(lost) > _SHOWN else "")
        raise UserError(
            f"{path}: {len(lost)} of {counted(len(layers), 'layer')} have no place here ({shown}); {remedy}, "
            "or add --allow_partial to leave them out"
        )
    if rest:
        logger.warning("%s: %s nothing here (%s ...)", path, number, rest[0])


def _belongs(name: str, owners: Collection[str]) -> bool:
    """Return whether a layer is of a part that is there, or of none that is known."""
    match = _OWNER.match(name)
    return match is None or match[1] is None or match[1] in owners
