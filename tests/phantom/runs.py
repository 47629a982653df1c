"""Trainings on the phantom card, in a process of their own, and what became of them."""

from __future__ import annotations

import gc
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from tests.phantom import card


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        status: as the program returned it; None if it ended with what `shown` ends with.
        waits: of the host for the card, in each step but the first.
        at_end: of them since the last step began.
    """

    status: int | None
    shown: str
    waits: Sequence[int] = ()
    at_end: int = 0
    where: str = ""


def begin() -> None:
    """Get a new process ready: from now on there is a card."""
    warnings.simplefilter("ignore")
    card.insert()
    torch.set_num_threads(1)


def train(script: str, arguments: Sequence[str], log: Path, fault: str | None = None) -> Outcome:
    """Run a script in this process, with one thing in the program broken if `fault` names one of `FAULTS`."""
    from sfumato.cli import main
    from sfumato.training.run.loop import Loop

    begun: list[Counter[tuple[str, str]]] = []
    take = Loop._take
    gc.freeze()  # what is imported is no garbage, and takes long to be looked through

    def noted(self: Loop, step: Any) -> list[str]:
        begun.append(card.waits.copy())
        return take(self, step)

    with _written_to(log), patch.object(Loop, "_take", noted), FAULTS[fault]() if fault else _nothing():
        try:
            status = main.script(script, list(arguments))
        except RuntimeError as error:
            return Outcome(None, f"{log.read_text('utf-8')}\n{error}")
        finally:
            card.card.make_copies(-1, -1)
    shown = log.read_text("utf-8")
    if not begun:
        return Outcome(status, shown)
    steps = [(after - before).total() for before, after in pairwise(begun)]
    late = card.waits - begun[min(1, len(begun) - 1)]
    return Outcome(status, shown, steps[1:], (card.waits - begun[-1]).total(), card.report(late))


def difference(first: Path, second: Path) -> float:
    """Return how far two files of weights are apart, relative to the norm of all; inf for no number."""
    ours, theirs = load_file(first), load_file(second)
    assert ours.keys() == theirs.keys()
    trained = [name for name in ours if not name.endswith(".alpha")]
    apart = torch.stack([(ours[name] - theirs[name]).double().norm() for name in trained]).norm()
    whole = torch.stack([theirs[name].double().norm() for name in trained]).norm()
    return (apart / whole).nan_to_num(nan=torch.inf).item()


def _unwaited_checkpoints() -> Any:
    from sfumato.nn.checkpointing import _Away

    return patch.object(_Away, "back", lambda away: away.values.to(away.device, non_blocking=True, copy=True))


def _unwaited_blocks() -> Any:
    from sfumato.nn.copy_stream import CudaCarrier

    return patch.object(CudaCarrier, "wait", lambda carrier, moment: None)


def _blocks_not_home() -> Any:
    from sfumato.nn.copy_stream import CudaCarrier

    return patch.object(CudaCarrier, "settle", lambda carrier: None)


def _unwaited_figures() -> Any:
    from sfumato.nn.device import HostCopy

    return patch.object(HostCopy, "read", lambda copy: copy._values)


def _unwaited_files() -> Any:
    return patch.object(card.Stream, "synchronize", lambda stream: None)


def _memory_given_away() -> Any:
    return patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None)


def _tokens_left_behind() -> Any:
    from sfumato.training.trainables import conditions

    return patch.object(conditions, "to_device", lambda tensor, device: tensor)


def _noise_left_behind() -> Any:
    from sfumato.training.trainables import noising

    return patch.object(noising, "to_device", lambda tensor, device: tensor)


def _generator_of_the_host() -> Any:
    from sfumato.training.update import stepping

    make = torch.Generator
    return patch.object(stepping.torch, "Generator", lambda device=None: make())


def _pageable_batches() -> Any:
    from sfumato.data.batches.collate import Batch

    return patch.object(Batch, "pin_memory", lambda batch: batch)


FAULTS: dict[str, Callable[[], Any]] = {
    "a block is used before it has come": _unwaited_blocks,
    "blocks are read before they are home": _blocks_not_home,
    "a checkpoint is used before it has come": _unwaited_checkpoints,
    "memory is given away while it is copied": _memory_given_away,
    "a loss is read before it has come": _unwaited_figures,
    "weights are written before they have come": _unwaited_files,
    "tokens stay in RAM": _tokens_left_behind,
    "noise stays in RAM": _noise_left_behind,
    "a generator is of the wrong device": _generator_of_the_host,
    "batches are not pinned": _pageable_batches,
}
"""Things to break in the real program, by what then happens."""


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _written_to(log: Path) -> Iterator[None]:
    """Let what is shown go to a file."""
    kept = [os.dup(number) for number in (1, 2)]
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        for number in (1, 2):
            os.dup2(file, number)
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(file)
