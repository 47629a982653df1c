"""Models that control the image by another one."""

from dataclasses import dataclass

from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class ControlConfig:
    """ControlNet and its kin."""

    control_net_models: tuple[str, ...] | None = None
    """ControlNets, each a file or folder."""

    control_net_lllite_models: tuple[str, ...] | None = None
    """Files of ControlNet-LLLite."""

    control_net_preps: tuple[str, ...] | None = None
    """What is done to the guide image first: `canny`, `canny_63_191` or `none`."""

    control_net_weights: tuple[float, ...] | None = None
    """Strengths of the ControlNets; 1 when not given."""

    control_net_multipliers: tuple[float, ...] | None = None
    """Strengths of the ControlNets; 1 when not given."""

    control_net_ratios: tuple[float, ...] | None = None
    """Share of the steps, from the beginning, in which each acts; 1 when not given."""


RULES = (
    idle(
        ["control_net_preps", "control_net_weights", "control_net_multipliers", "control_net_ratios"],
        given("control_net_models"),
        given("control_net_lllite_models"),
    ),
)
"""What these options mean to others."""
