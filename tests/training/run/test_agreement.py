"""Processes that do not start from the same options and data are refused, all of them in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.errors import UserError
from sfumato.training.run.agreement import require_same


@dataclass
class _Fellows:
    """Stands for the other process of two: gives what it gave in an earlier call."""

    world: int = 2
    given: list[Any] = field(default_factory=list)

    def of_others(self, things: list[Any]) -> list[Any]:
        before, self.given = self.given or things, things
        return before


def _both(first: Mapping[str, Any], second: Mapping[str, Any]) -> None:
    fellows = _Fellows()
    for values in (first, second):
        sections = (LengthConfig(seed=values.get("seed", 1)), SavingConfig(output_dir=values.get("out")))
        facts = {"images": values.get("images", "a"), "processes": 2}
        session = SimpleNamespace(processes=fellows, run=Run("", "", sections), data_record=facts)
        require_same(cast("Any", session))


def test_processes_that_start_alike_go_on_wherever_their_files_lie() -> None:
    _both({"out": "/first"}, {"out": "/second"})


@pytest.mark.parametrize(
    ("second", "named"),
    [({"seed": 2}, "--seed"), ({"images": "b"}, "images"), ({"images": "b", "seed": 2}, "--seed, images")],
)
def test_what_differs_is_named(second: Mapping[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=f"the processes of this run differ in {named}; start all of them"):
        _both({}, second)
