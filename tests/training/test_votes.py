from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from sfumato.nn.device import HostCopy
from sfumato.training.core.distributed import LateVote


@dataclass
class Fellows:
    """Stands for one of several processes; the others vote as `others` says."""

    world: int
    others: list[list[float]] = field(default_factory=list)
    device = torch.device("cpu")

    def sum_(self, votes: Tensor) -> None:
        votes += torch.tensor(self.others.pop(0))


def test_one_process_is_heard_at_once() -> None:
    vote = LateVote(Fellows(1))  # type: ignore[arg-type]
    assert [vote([False, True]), vote([True, False])] == [[False, True], [True, False]]


@pytest.mark.parametrize(
    ("own", "others"),
    [([0, 0, 1, 0], [0, 0, 0, 0]), ([0, 0, 0, 0], [0, 0, 1, 0]), ([0, 0, 1, 0], [0, 0, 2, 0])],
)
def test_several_processes_hear_of_any_vote_one_call_later(own: list[int], others: list[float]) -> None:
    vote = LateVote(Fellows(3, [[0, count] for count in others]))  # type: ignore[arg-type]
    heard = [vote([False, bool(value)]) for value in own]
    assert heard == [[False, False], [False, False], [False, False], [False, True]]


def test_a_copy_to_the_host_reads_what_was_there() -> None:
    assert HostCopy(torch.tensor([1.0, 2.0])).read().tolist() == [1.0, 2.0]
