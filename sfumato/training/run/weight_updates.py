"""Which way of changing weights a run takes: all after the backward pass, or share by share within it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from sfumato.config.run.model.whole_model import WholeModelConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.config.run.training.schedule import ScheduleConfig
from sfumato.errors import UserError
from sfumato.training.core.distributed import Processes
from sfumato.training.core.plan import Plan
from sfumato.training.core.precision import Precision
from sfumato.training.trainables import ParameterGroup
from sfumato.training.update import schedulers, shares
from sfumato.training.update.flat import FlatParameter, align, flatten
from sfumato.training.update.fused import FusedUpdate
from sfumato.training.update.optimizer_step import Update, WeightUpdate
from sfumato.training.update.optimizers import OptimizerPlan
from sfumato.training.update.shares import Cut
from sfumato.training.update.stepping import Rounding, Stepping

logger = logging.getLogger(__name__)


def check(run: Run, optimizer: OptimizerPlan) -> None:
    """Raise UserError if the optimizer cannot step weights apart and is to; say what else matters."""
    option = _fusing(run)
    if option is None:
        return
    if not optimizer.steps_apart:
        raise UserError(
            f"--{option} cannot be used with {optimizer.kind.__name__}, whose steps depend on all weights at "
            "once; leave it out, or use Adafactor, AdamW or AdamW8bit"
        )
    if run[LengthConfig].gradient_accumulation_steps > 1:
        logger.warning(
            "--gradient_accumulation_steps keeps all gradients, so --%s saves little memory", option
        )
    if run[OptimizerConfig].max_grad_norm:
        logger.warning(
            "--%s clips each weight's gradient by itself to --max_grad_norm %g; 0 turns clipping off",
            *(option, run[OptimizerConfig].max_grad_norm),
        )


def check_steps(run: Run, plan: Plan, world: int, *, is_swapped: bool) -> None:
    """Raise UserError if a process would have to change weights that travel without computing with them."""
    num_last = len(plan.step(plan.steps_per_epoch).micro_batches)
    if is_swapped and WholeModelConfig in run and num_last < world:
        raise UserError(
            f"--blocks_to_swap with {world} processes needs work for each of them in every step, but the "
            f"last step of an epoch has {num_last} of {plan.num_batches} batches; change --train_batch_size "
            "or num_repeats, or take another number of processes"
        )


def update_for(
    run: Run,
    plan: OptimizerPlan,
    precision: Precision,
    processes: Processes,
    groups: Sequence[ParameterGroup],
    blocks: Sequence[nn.Module],
    *,
    num_steps: int,
    seed: int,
    recall: Callable[[], None] = lambda: None,
) -> WeightUpdate:
    """Return what changes the weights of `groups`.

    Args:
        blocks: those of all trained models, for shares that are blocks.
        num_steps: of the whole run, for the schedule.
        seed: of the run, for stochastic rounding.
        recall: see `Stepping`.
    """
    config, is_fused = run[OptimizerConfig], _fusing(run) is not None
    plan.check_rates(groups)
    described = [{**group.as_dict(), "last_step": group.last_step} for group in groups]
    weights = [weight for group in groups for weight in group.parameters]
    align(weights)
    rounding = Rounding(seed, weights) if precision.trained is torch.bfloat16 else None
    flat = _join(described) if plan.is_elementwise and not (is_fused or rounding) else []
    rate_places = None
    if is_fused or (rounding and plan.steps_apart):
        described, rate_places = shares.divide(described, _cut_for(run, described, blocks))
    optimizer = plan.build(described, config.learning_rate)
    scheduler = schedulers.build(run[ScheduleConfig], optimizer, plan, config.learning_rate, num_steps)
    last_steps = [group["last_step"] for group in described]
    stepping = Stepping(optimizer, scheduler, rate_places, rounding, recall, last_steps)
    skips = config.on_nonfinite == "skip"
    if is_fused:
        return FusedUpdate(stepping, processes, config.max_grad_norm, skips)
    return Update(stepping, processes, config.max_grad_norm, precision.scaler(), skips, flat)


def _fusing(run: Run) -> str | None:
    """Return the option by which the run fuses backward pass and optimizer, or None."""
    whole = run.get(WholeModelConfig, WholeModelConfig())
    if run[OptimizerConfig].fused_backward_pass:
        return "fused_backward_pass"
    if whole.blockwise_fused_optimizers:
        return "blockwise_fused_optimizers"
    return "fused_optimizer_groups" if whole.fused_optimizer_groups else None


def _cut_for(run: Run, described: Iterable[Mapping[str, Any]], blocks: Sequence[nn.Module]) -> Cut:
    option = _fusing(run)
    if option == "blockwise_fused_optimizers":
        return shares.by_block(blocks)
    if option == "fused_optimizer_groups":
        num = run[WholeModelConfig].fused_optimizer_groups or 1
        return shares.by_size(num, sum(weight.nbytes for group in described for weight in group["params"]))
    return shares.weight_by_weight


def _join(groups: Iterable[dict[str, Any]]) -> list[FlatParameter]:
    flat: list[FlatParameter] = []
    for group in groups:
        joined, group["params"] = flatten(group["params"])
        flat += joined
    return flat
