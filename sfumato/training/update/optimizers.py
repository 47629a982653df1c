"""Optimizers by name: sd-scripts' names, any class of torch.optim, or any `package.module.Class`."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from sfumato import installing
from sfumato.adapters.network.rates import PLUS, ParameterGroup
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.optimizer_names import NAMED, class_path
from sfumato.errors import UserError, guest_code
from sfumato.training.update.argument_values import parse_arguments, require_accepted
from sfumato.training.update.stepping import Stepping

logger = logging.getLogger(__name__)

GUESSES_ITS_RATE = ("dadaptation", "prodigyopt")
"""Packages whose optimizers find the learning rate themselves and want 1.0."""

TAKES_ONE_RATE = (
    "Prodigy",
    "ProdigyReference",
    "DAdaptAdam",
    "DAdaptAdamPreprint",
    "DAdaptLion",
    "DAdaptSGD",
)
"""Those of them that fail in their first step if parameter groups have different rates."""

PROCESSOR = torch.device("cpu")
_FUSES = ("cpu", "cuda", "xpu")
"""Devices on which AdamW can be fused in every PyTorch that is supported."""

OPTION = "--optimizer_args"

_OURS = ("params", "lr")
"""Arguments that every optimizer gets from us."""

_NUM_TRIED = 3
"""Steps that tell whether an optimizer works."""

_MOST_STATE_BYTES = 16
_SAMPLE = 256
"""Side of a matrix whose state tells that of larger ones; smaller ones do not get states of 8 bits."""

ELEMENTWISE = (
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam),
    *(torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta),
)
"""Optimizers whose update of an element depends on that element's history alone: neither on its tensor (as in
Adafactor) nor on a block of neighbours (8-bit states) nor on all others (Prodigy)."""


@dataclass(frozen=True)
class OptimizerPlan:
    """An optimizer's class and arguments, known before any weight exists.

    Attributes:
        kind: the optimizer class.
        arguments: what the user gave, as keyword arguments.
        implied: arguments that the name or the device implies; the user's own win.
        relative_step: the optimizer (Adafactor) sets its own rates and ignores the groups'.
        device: where the weights will be. There the optimizer is tried, for some compute on one kind alone.
    """

    kind: type[torch.optim.Optimizer]
    arguments: Mapping[str, Any]
    implied: Mapping[str, Any]
    relative_step: bool = False
    device: torch.device = PROCESSOR

    @property
    def description(self) -> str:
        """The optimizer as adapter files record it: `module.Class(argument=value,...)`."""
        name = f"{self.kind.__module__}.{self.kind.__name__}"
        listed = ",".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"{name}({listed})" if listed else name

    @property
    def is_elementwise(self) -> bool:
        """Whether the optimizer computes the same on several tensors and on one that holds them all."""
        return self.kind in ELEMENTWISE

    @cached_property
    def steps_apart(self) -> bool:
        """Whether stepping weights one by one is the same as stepping them together.

        Optimizers that find their rate from all weights at once are known not to; any other is tried, once.
        """
        if _guesses_its_rate(self.kind):
            return False
        try:
            together, apart = (self._try(is_apart=is_apart) for is_apart in (False, True))
        except UserError as error:
            logger.debug("%s cannot step weights one by one: %s", self.kind.__name__, error)
            return False
        return all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))

    def _try(self, *, is_apart: bool) -> list[torch.Tensor]:
        """Return what three steps make of two small weights, in groups of their own or in one."""
        rng = torch.Generator().manual_seed(0)
        shapes = (3, 4), (5,)
        weights = [torch.nn.Parameter(torch.randn(s, generator=rng).to(self.device)) for s in shapes]
        groups = [{"params": [weight]} for weight in weights] if is_apart else [{"params": weights}]
        stepping = Stepping(self.build(groups, 1e-2))
        for _ in range(3):
            for index, weight in enumerate(weights):
                weight.grad = torch.randn(weight.shape, generator=rng).to(self.device)
                if is_apart:
                    stepping.step_share(index)
            if not is_apart:
                stepping.step()
        return [weight.detach() for weight in weights]

    def state_bytes(self, num_weights: int) -> int:
        """Return about how much the optimizer remembers of so many weights, in bytes."""
        try:
            return self._state_bytes() * num_weights // _SAMPLE**2
        except UserError:  # training will say what is wrong
            return num_weights * _MOST_STATE_BYTES

    def _state_bytes(self) -> int:
        """Return how much the optimizer remembers of a matrix of `_SAMPLE` by `_SAMPLE` weights."""
        if _guesses_its_rate(self.kind):
            return _SAMPLE**2 * _MOST_STATE_BYTES
        weight = torch.nn.Parameter(torch.zeros(_SAMPLE, _SAMPLE, device=self.device))
        stepping = Stepping(self.build([{"params": [weight]}], 1e-2))
        weight.grad = torch.zeros_like(weight)
        stepping.step()
        kept = (value for value in stepping.optimizer.state[weight].values() if torch.is_tensor(value))
        return sum(value.nbytes for value in kept)

    @property
    def is_schedule_free(self) -> bool:
        """Whether the optimizer must be told when training and when evaluation begins."""
        return callable(getattr(self.kind, "train", None)) and callable(getattr(self.kind, "eval", None))

    def check(self, learning_rate: float) -> torch.optim.Optimizer:
        """Return the optimizer of weights of no account, which it was able to step.

        Raises:
            UserError: it cannot be built, cannot step, or makes weights that are no numbers.
        """
        weight = torch.nn.Parameter(torch.ones(2, 2, device=self.device))
        stepping = Stepping(self.build([{"params": [weight]}], learning_rate))
        weight.grad = torch.ones_like(weight)
        try:
            for _ in range(_NUM_TRIED):
                stepping.step()
        except UserError as error:
            raise UserError(f"{OPTION} {self._told}do not suit {self.kind.__name__}: {error}") from error
        if not weight.isfinite().all():
            raise UserError(
                f"{OPTION} {self._told}let {self.kind.__name__} make weights that are no numbers within "
                f"{_NUM_TRIED} steps; use smaller ones"
            )
        return stepping.optimizer

    @property
    def _told(self) -> str:
        """The arguments as they are written, each with a blank behind it."""
        return "".join(f"{key}={value!r} " for key, value in self.arguments.items())

    def build(self, groups: Sequence[Mapping[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """Make the optimizer for parameter groups that each hold `params` and may hold `lr`.

        A negative rate moves weights away from what is shown. Optimizers refuse to be made with one and
        compute with it all the same.
        """
        known = ("params",) if self.relative_step else ("params", "lr")
        groups = [{key: group[key] for key in known if key in group} for group in groups]
        rate = None if self.relative_step else learning_rate
        with guest_code(f"{OPTION} {self._told}do not suit {self.kind.__name__}"):
            optimizer = self.kind(  # type: ignore[call-arg]
                [{**group, **({"lr": abs(group["lr"])} if "lr" in group else {})} for group in groups],
                **{"lr": rate and abs(rate), **self.implied, **self.arguments},
            )
        for made, group in zip(optimizer.param_groups, groups, strict=True):
            if (group.get("lr", rate) or 0) < 0:
                made["lr"] = -made["lr"]
        return optimizer

    def check_rates(self, groups: Sequence[ParameterGroup]) -> list[str]:
        """Return what to tell of rates that the optimizer does not listen to.

        Raises:
            UserError: it takes one rate for all weights, and there are several.
        """
        rates = {group.name: group.learning_rate for group in groups if group.learning_rate}
        takes_one = self.kind.__name__ in TAKES_ONE_RATE
        if len({*rates.values()}) < 2 or not (takes_one or self.relative_step):
            return []
        listed = ", ".join(f"{name.strip()} {rate:g}" for name, rate in rates.items())
        has_plus = any(name.endswith(PLUS) for name in rates)
        remedy = "leave out LoRA+ (loraplus_lr_ratio)" if has_plus else "give all of them one rate"
        if takes_one:
            raise UserError(
                f"--optimizer_type {self.kind.__name__} takes one learning rate, but there are several "
                f"({listed}); {remedy}"
            )
        return [
            f"the learning rates ({listed}) have no effect: --optimizer_type {self.kind.__name__} sets its "
            f"own; {remedy}, or set relative_step=False in {OPTION}"
        ]


def plan(config: OptimizerConfig, device: torch.device = PROCESSOR) -> OptimizerPlan:
    """Find the optimizer's class and arguments.

    Args:
        device: where the weights will be.

    Raises:
        UserError: the name is unknown, its package is missing, or an argument is malformed.
    """
    name = config.optimizer_type or "AdamW"
    arguments = parse_arguments(config.optimizer_args or (), OPTION)
    kind = _find_class(class_path(name), name)
    _require_plain_step(kind, name)
    if "lr" in arguments:
        raise UserError(f"{OPTION} holds lr={arguments['lr']}; give it as --learning_rate")
    require_accepted(kind, arguments, OPTION, _OURS)
    is_adafactor = NAMED["adafactor"].endswith(kind.__name__) and "transformers" in kind.__module__
    if is_adafactor:
        arguments = _settle_adafactor(arguments, config)
    if _guesses_its_rate(kind) and config.learning_rate <= 0.1:
        logger.warning(
            "--learning_rate is %g; %s finds the rate itself, so use about 1.0",
            config.learning_rate,
            kind.__name__,
        )
    relative = is_adafactor and bool(arguments["relative_step"])
    implied = _implied_arguments(name.lower(), kind, arguments, device)
    return OptimizerPlan(kind, arguments, implied, relative, device)


def _find_class(path: str, name: str) -> type[torch.optim.Optimizer]:
    module_name, _, class_name = path.rpartition(".")
    try:
        with guest_code(f"--optimizer_type {name} cannot be imported"):
            module = importlib.import_module(module_name)
    except UserError as error:
        if not isinstance(missing := error.__cause__, ModuleNotFoundError):
            raise
        needed = installing.package_of(missing.name or module_name)
        raise UserError(
            f"--optimizer_type {name} needs {needed}: run {installing.command(needed)}"
        ) from error
    kind = getattr(module, class_name, None)
    if not inspect.isclass(kind) or not issubclass(kind, torch.optim.Optimizer):
        known = ", ".join(sorted({path.rpartition(".")[2] for path in NAMED.values()}))
        raise UserError(f"--optimizer_type is {name}; known are {known}, or give package.module.Class")
    return kind


def _require_plain_step(kind: type[torch.optim.Optimizer], name: str) -> None:
    """Raise UserError for an optimizer that computes the loss itself, several times a step."""
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise UserError(
            f"--optimizer_type {name} computes the loss again and again within a step (its step needs a "
            "closure), which no training here does; choose another optimizer"
        )


def _guesses_its_rate(kind: type[torch.optim.Optimizer]) -> bool:
    return kind.__module__.split(".")[0] in GUESSES_ITS_RATE


def _implied_arguments(
    name: str, kind: type[torch.optim.Optimizer], arguments: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    if name.startswith("sgdnesterov"):
        return {"momentum": 0.9, "nesterov": True}
    can_fuse = kind is torch.optim.AdamW and device.type in _FUSES
    if can_fuse and not arguments.keys() & {"fused", "foreach", "capturable", "differentiable"}:
        return {"fused": True}  # one kernel for all parameters: seven times faster than the loop on a CPU
    return {}


def _settle_adafactor(arguments: dict[str, Any], config: OptimizerConfig) -> dict[str, Any]:
    """Make Adafactor's interlocked switches explicit (Shazeer & Stern 2018, section 6)."""
    settled = {**arguments, "relative_step": arguments.get("relative_step", True)}
    if settled.get("warmup_init") and not settled["relative_step"]:
        logger.warning("--optimizer_args: warmup_init=True sets relative_step=True")
        settled["relative_step"] = True
    if settled["relative_step"]:
        logger.info(
            "Adafactor sets its own rates (relative_step=True); learning rates only initialise its schedule"
        )
    elif config.max_grad_norm:
        logger.warning("--max_grad_norm is %g; 0 works better with Adafactor", config.max_grad_norm)
    return settled
