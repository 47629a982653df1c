"""Which folder of a subset holds loss masks, and which control images.

`mask_dir` and `control_dir` say so themselves. `conditioning_data_dir`, the one key of sd-scripts, means
whichever of them the script is about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sfumato.config.run.data.partners import PartnerRole
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.config.descriptions import EITHER, Described
from sfumato.errors import UserError

_KEYS: Mapping[PartnerRole, str] = {"mask": "mask_dir", "control": "control_dir"}
_HELD: Mapping[PartnerRole, str] = {"mask": "masks", "control": "control images"}


def with_roles(dataset: Described, run: Run) -> Described:
    """Return the data set with every folder of partner images under the key of its role.

    Raises:
        UserError: a folder is named twice, is missing, or means nothing to the run.
    """
    role = run.conditioning_role
    is_older = any(EITHER in subset and "metadata_file" not in subset for subset in dataset.subsets)
    if is_older and role == "mask" and not run[LossConfig].masked_loss:
        raise UserError(f"{dataset.where}: {EITHER} needs --masked_loss, which reads masks there")
    dataset = replace(dataset, subsets=tuple(_named(s, role, dataset.where) for s in dataset.subsets))
    _check_control(dataset, run)
    return dataset


def _named(subset: Mapping[str, Any], role: PartnerRole, where: str) -> Mapping[str, Any]:
    if EITHER not in subset or "metadata_file" in subset:
        return subset
    if _KEYS[role] in subset:
        raise UserError(
            f"{where}: {EITHER} and {_KEYS[role]} both name a folder of {_HELD[role]}; leave one of them out"
        )
    return {_KEYS[role] if key == EITHER else key: value for key, value in subset.items()}


def _check_control(dataset: Described, run: Run) -> None:
    """See that every subset has control images, or none where nothing looks at them."""
    has_control = ["control_dir" in subset for subset in dataset.subsets]
    if run.conditioning_role == "control" and not all(has_control):
        raise UserError(
            f"{dataset.where}: a subset has no control_dir; name the folder of its control images"
        )
    if run.conditioning_role != "control" and any(has_control):
        raise UserError(
            f"{dataset.where}: control_dir has no use in {run.script}, which trains nothing that looks at "
            "control images; leave it out"
        )
