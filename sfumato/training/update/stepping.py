"""Step an optimizer: as a whole or share by share, and for bfloat16 weights in float32.

A share is what is stepped at once. Where a run has shares, each is a parameter group of its own, so that one
can be stepped while the others are left out, and an optimizer's counters, which live in groups, stay right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from sfumato import seeds
from sfumato.errors import guest_code
from sfumato.nn.rounding import round_stochastically_
from sfumato.training.core.readings import Rate
from sfumato.transfer import copied, to_device

Group = dict[str, Any]
"""A parameter group as torch optimizers have it."""


class Rounding:
    """Stochastic rounding that depends on seed, step and parameter alone.

    So processes that step the same weights stay equal, and it does not matter when each weight is stepped.
    """

    def __init__(self, seed: int, parameters: Iterable[nn.Parameter]) -> None:
        self._seed = seed
        self._step = 0
        self._indices = {id(parameter): index for index, parameter in enumerate(parameters)}
        self._generators: dict[torch.device, torch.Generator] = {}

    def begin(self, step: int) -> None:
        """Draw other numbers from now on: those of this step."""
        self._step = step

    def __call__(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Write float32 `value` into a bfloat16 parameter."""
        device = value.device
        rng = self._generators.setdefault(device, torch.Generator(device))
        rng.manual_seed(seeds.derive("rounding", self._seed, self._step, self._indices[id(parameter)]))
        round_stochastically_(parameter.detach(), value, rng)


@dataclass
class Stepping:
    """An optimizer, its schedule, and how it is stepped.

    Attributes:
        scheduler: None for optimizers that need none.
        rate_places: for each group that the run described, the index of the optimizer's group that has its
            rate, where each of these is a share; None if they are the same.
        rounding: given where weights are bfloat16: they are stepped in float32, with states in float32, and
            rounded by it. One share at a time is held in float32.
        recall: brings all weights where they can be read and changed; some may be travelling.
        last_steps: for each of the optimizer's groups, the last step that changes it, or None for that of
            the run; None if all are changed to the end.
    """

    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None = None
    rate_places: Sequence[int] | None = None
    rounding: Rounding | None = None
    recall: Callable[[], None] = lambda: None
    last_steps: Sequence[int | None] | None = None
    _number: int = 1

    def __post_init__(self) -> None:
        if train := getattr(self.optimizer, "train", None):
            train()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The optimizer's parameters, group by group."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def begin(self, step: int) -> None:
        """Get ready for a step."""
        self._number = step
        if self.rounding is not None:
            self.rounding.begin(step)

    def step(self) -> None:
        """Change all weights by their gradients."""
        changing = [group for index, group in enumerate(self.optimizer.param_groups) if self.changes(index)]
        for groups in self._pieces(changing):
            self._call(self.optimizer.step, groups, is_step=True)

    def changes(self, index: int) -> bool:
        """Return whether this step changes the weights of a group."""
        last = self.last_steps[index] if self.last_steps else None
        return last is None or self._number <= last

    def step_share(self, index: int) -> None:
        """Change the weights of one group by their gradients."""
        self._call(self.optimizer.step, [self.optimizer.param_groups[index]], is_step=True)

    def advance(self) -> None:
        """Go on in the schedule."""
        if self.scheduler is not None:
            with guest_code(f"the schedule {type(self.scheduler).__name__} failed"):
                self.scheduler.step()

    def rates(self) -> list[Rate]:
        """Return the learning rate of each group that the run described."""
        groups = self.optimizer.param_groups
        places = range(len(groups)) if self.rate_places is None else self.rate_places
        return [_rate(groups[place]) for place in places]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Let the weights be those to use, not those to train, for the duration of a `with` block.

        They differ for schedule-free optimizers alone: gradients are taken at y, between the fast sequence
        and the average x that is the result (Defazio et al. 2024, equations 3 to 5).
        """
        self.recall()
        evaluate, train = (getattr(self.optimizer, name, None) for name in ("eval", "train"))
        if evaluate is None or train is None:
            yield
            return
        # Going to x and back rounds, so that the run would depend on when it saves: y is kept instead.
        kept = copied({str(number): parameter for number, parameter in enumerate(self.parameters)})
        for groups in self._pieces(self.optimizer.param_groups):
            self._call(evaluate, groups)
        try:
            yield
        finally:
            self.recall()
            for groups in self._pieces(self.optimizer.param_groups):
                self._call(train, groups)
            for parameter, before in zip(self.parameters, kept.values(), strict=True):
                parameter.detach().copy_(to_device(before, parameter.device))

    def _pieces(self, groups: list[Group]) -> Iterable[list[Group]]:
        """Return the groups that are treated at once: one by one only where float32 copies must be few."""
        has_shares = self.rate_places is not None
        return [[group] for group in groups] if has_shares and self.rounding is not None else [groups]

    def _call(self, act: Callable[[], object], groups: list[Group], *, is_step: bool = False) -> None:
        """Let the optimizer act on these groups as if it had no others."""
        everything = self.optimizer.param_groups
        with ExitStack() as stack:
            if self.rounding is not None:
                for group in groups:
                    stack.enter_context(self._widened(group, is_step=is_step))
            self.optimizer.param_groups = groups
            try:
                with guest_code(f"the optimizer {type(self.optimizer).__name__} failed"):
                    act()
            finally:
                self.optimizer.param_groups = everything

    @contextmanager
    def _widened(self, group: Group, *, is_step: bool) -> Iterator[None]:
        """Let float32 copies stand in for a group's bfloat16 parameters; then write them back."""
        parameters, state = group["params"], self.optimizer.state
        group["params"] = [_stand_in(parameter) for parameter in parameters]
        pairs = list(zip(parameters, group["params"], strict=True))
        for parameter, stand_in in pairs:
            if stand_in is not parameter and parameter in state:
                state[stand_in] = state.pop(parameter)
        try:
            yield
        finally:
            group["params"] = parameters
            for parameter, stand_in in pairs:
                if stand_in is not parameter:
                    if stand_in in state:
                        state[parameter] = state.pop(stand_in)
                    self._write(parameter, stand_in.detach(), is_step=is_step)

    def _write(self, parameter: nn.Parameter, value: Tensor, *, is_step: bool) -> None:
        if is_step and self.rounding is not None:
            self.rounding(parameter, value)
        else:
            parameter.detach().copy_(value)


def _stand_in(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype is not torch.bfloat16:
        return parameter
    stand_in = nn.Parameter(parameter.detach().float())
    stand_in.grad = None if parameter.grad is None else parameter.grad.float()
    return stand_in


def _rate(group: Group) -> Rate:
    scheduled = float(group.get("scheduled_lr", group["lr"]) or 0.0)
    return Rate(scheduled, float(group["d"]) if "d" in group else None)
