"""What an optimizer remembers, in a state: taken out of it, and put back where it belongs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.tensors import TensorReader
from sfumato.errors import UserError
from sfumato.training.state.json_tensors import put_together

Description = list[list[list[Any]]]
"""Of each group's parameters, in order: the names of the trained tensors in it, and its shape; as JSON."""

_REMEDY = "resume with the options of the run that saved it, or start anew from the file it saved"


def content(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return what an optimizer remembers; its own `state_dict` may wrap it, `load_state_dict` casts it."""
    numbered = enumerate(_parameters(optimizer))
    return {
        "state": {index: dict(optimizer.state[p]) for index, p in numbered if p in optimizer.state},
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
    }


def described(optimizer: torch.optim.Optimizer, trained: Iterable[tuple[str, Tensor]]) -> Description:
    """Return which weights an optimizer's parameters are.

    Args:
        trained: all that is trained, by name; a parameter may hold many of them side by side.
    """
    places = [(name, tensor.data_ptr()) for name, tensor in trained]
    return [
        [[_names_in(parameter, places), list(parameter.shape)] for parameter in group["params"]]
        for group in optimizer.param_groups
    ]


def require_same(before: Description | None, now: Description, folder: Path) -> None:
    """Raise UserError if a state's optimizer had other parameters, or the same in another order.

    Args:
        before: None in states of versions that did not tell.
    """
    if before is None:
        return
    _require_groups(len(before), len(now), folder)
    for group, own_group in zip(before, now, strict=True):
        for parameter, own in zip_longest(group, own_group):
            if parameter != own:
                both = f"{_shown(parameter)}, where the run has {_shown(own)}"
                raise UserError(f"--resume {folder}: its optimizer has {both}; {_REMEDY}")


def require_form(saved: Any, description: Any) -> None:
    """Raise ValueError unless this is what an optimizer remembers, and which weights its parameters are.

    Args:
        saved: values by weight, and groups.
        description: as `described` returns it, or None.
    """
    groups = [] if description is None else description
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise ValueError("its parameters are no groups")
    if not all(_is_description(parameter) for group in groups for parameter in group):
        raise ValueError("its parameters are no names and shapes")
    match saved:
        case {"state": dict(state), "groups": list(groups)}:
            is_state = all(type(key) is int and isinstance(values, dict) for key, values in state.items())
            if is_state and all(isinstance(group, dict) and "params" not in group for group in groups):
                return
    raise ValueError("its optimizer has no state and groups")


def _is_description(parameter: Any) -> bool:
    match parameter:
        case [list(names), list()]:
            return all(isinstance(name, str) for name in names)
    return False


def restore(optimizer: torch.optim.Optimizer, plain: Any, reader: TensorReader, folder: Path) -> None:
    """Let an optimizer remember what one with the same parameters did.

    Args:
        plain: `content` as JSON, whose tensors `reader` has.
    """
    parameters = _parameters(optimizer)
    devices: set[str] = set()

    def tensor(key: str, device: str) -> Tensor:
        devices.add(device)
        return reader.get(key, device if device == "cpu" else parameters[0].device)

    saved = put_together(plain, tensor)
    _require_groups(len(saved["groups"]), len(optimizer.param_groups), folder)
    if strange := [index for index in saved["state"] if not 0 <= index < len(parameters)]:
        raise UserError(
            f"--resume {folder}: its optimizer has a weight number {strange[0] + 1}, and the run has "
            f"{len(parameters)}; {_REMEDY}"
        )
    for group, before in zip(optimizer.param_groups, saved["groups"], strict=True):
        group |= before
    places = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    for index, values in saved["state"].items():
        parameter = parameters[index]
        is_of_processor = devices <= {"cpu"}
        own = beside(parameter, values, places[id(parameter)]) if is_of_processor else values
        optimizer.state[parameter] = own


def beside(parameter: Tensor, values: Mapping[str, Any], group: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a run on a processor remembered of a parameter, moved to where the parameter is now.

    A count of steps stays on the processor, unless the optimizer's kernel reads it on the device; PyTorch's
    own optimizers have it so.
    """
    counts_there = group.get("fused") or group.get("capturable")
    return {
        name: value.to(parameter.device)
        if isinstance(value, Tensor) and (name != "step" or counts_there)
        else value
        for name, value in values.items()
    }


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _names_in(parameter: Tensor, places: Iterable[tuple[str, int]]) -> list[str]:
    start = parameter.data_ptr()
    return [name for name, place in places if start <= place < start + parameter.nbytes]


def _require_groups(before: int, now: int, folder: Path) -> None:
    if before != now:
        raise UserError(
            f"--resume {folder} has {before} groups of weights and the run has {now}; "
            "resume with the learning rates and the fusing of that run"
        )


def _shown(parameter: list[Any] | None) -> str:
    if parameter is None:
        return "nothing"
    names, shape = parameter
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{tuple(shape)} for {names[0] if names else 'a weight'}{others}"
