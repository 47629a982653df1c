"""What only flow-matching models have."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import above
from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class FlowConfig:
    """Flow matching."""

    weighting_scheme: Literal["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"] = "none"
    """How noise levels are drawn (logit_normal, mode) or weighed (sigma_sqrt, cosmap); none is evenly."""

    logit_mean: float = 0.0
    """Mean of the normal distribution behind logit_normal; higher means more noise."""

    logit_std: float = 1.0
    """Standard deviation of the normal distribution behind logit_normal."""

    mode_scale: float = 1.29
    """How strongly `mode` prefers the middle noise levels."""

    timestep_sampling: Literal["sigma", "uniform", "sigmoid", "shift", "flux_shift"] = "sigma"
    """How noise levels are drawn: by `weighting_scheme` from the schedule (sigma), evenly (uniform), as the
    sigmoid of a normal number (sigmoid), or that shifted by `discrete_flow_shift` (shift) or by the size of
    the image (flux_shift)."""

    sigmoid_scale: float = 1.0
    """Factor on the normal number for sigmoid, shift and flux_shift; larger spreads the noise levels out."""

    model_prediction_type: Literal["raw", "additive", "sigma_scaled"] = "sigma_scaled"
    """What the model's output is taken for: velocity as it is (raw), the clean latents after adding it to the
    noisy ones (additive), or after adding it times the noise level (sigma_scaled)."""

    discrete_flow_shift: float = 3.0
    """Shift of the noise levels towards noise; 1 is none. FLUX.1 dev is trained with about 3.1582."""

    guidance_scale: float = 3.5
    """Guidance given to a guidance-distilled model during training; 1.0 is usual for FLUX.1 dev."""

    def __post_init__(self) -> None:
        above(self, 0, "logit_std", "discrete_flow_shift")


_DRAWN_BY_WEIGHT = (given("weighting_scheme", "logit_normal", "mode"),)
_FROM_TABLE = given("timestep_sampling", "sigma")

RULES = (
    idle(["weighting_scheme"], _FROM_TABLE, among=_DRAWN_BY_WEIGHT),
    idle(
        ["weighting_scheme"],
        given("model_prediction_type", "sigma_scaled"),
        among=(given("weighting_scheme", "sigma_sqrt", "cosmap"),),
    ),
    idle(["logit_mean", "logit_std"], _FROM_TABLE + given("weighting_scheme", "logit_normal")),
    idle(["mode_scale"], _FROM_TABLE + given("weighting_scheme", "mode")),
    idle(["discrete_flow_shift"], given("timestep_sampling", "sigma", "shift")),
    idle(["sigmoid_scale"], given("timestep_sampling", "sigmoid", "shift", "flux_shift")),
)
"""What these options mean to others."""
