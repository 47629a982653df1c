"""How weights are updated."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least, importable
from sfumato.config.rule import excludes, given, implies, needs


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer."""

    optimizer_type: str = ""
    """Name (AdamW, AdamW8bit, Adafactor, Lion, Prodigy ...) or `module.Class`; AdamW when empty."""

    use_8bit_adam: bool = False
    """The older way to write `--optimizer_type AdamW8bit`."""

    use_lion_optimizer: bool = False
    """The older way to write `--optimizer_type Lion`."""

    learning_rate: float = 2.0e-6
    """Learning rate of whatever has no rate of its own. Adapters want about 1e-4."""

    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm at most; 0 turns clipping off."""

    optimizer_args: tuple[str, ...] | None = None
    """Its arguments as `name=value`, values in Python's notation: `betas=0.9,0.99 weight_decay=0.01`."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a step whose loss or gradients are not finite does: stop the run, or change nothing and go on."""

    fused_backward_pass: bool = False
    """Update each weight as soon as its gradient is known, and free that: saves the memory of gradients. For
    optimizers that can step weights one by one: not Prodigy and D-Adaptation."""

    def __post_init__(self) -> None:
        at_least(self, 0, "max_grad_norm")
        importable(self, "optimizer_type")


RULES = (
    excludes(["use_8bit_adam"], ["use_lion_optimizer"], "there is one optimizer"),
    excludes(["use_8bit_adam"], ["optimizer_type"], "it is the older spelling of --optimizer_type AdamW8bit"),
    excludes(["use_lion_optimizer"], ["optimizer_type"], "it is the older spelling of --optimizer_type Lion"),
    needs(
        ["fused_backward_pass"],
        given("mixed_precision", "bf16", "no"),
        reason="with fp16 no gradient is known to be good before all are there",
    ),
    implies("use_8bit_adam", {"optimizer_type": "AdamW8bit"}),
    implies("use_lion_optimizer", {"optimizer_type": "Lion"}),
)
"""What these options mean to others."""
