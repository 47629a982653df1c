"""How the distance between prediction and target is measured."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import above, at_least
from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class LossConfig:
    """Loss."""

    loss_type: Literal["l1", "l2", "huber", "smooth_l1"] = "l2"
    """Squared error (l2), absolute error (l1), or two that are squared near zero and absolute beyond."""

    huber_schedule: Literal["constant", "exponential", "snr"] = "snr"
    """How the border between squared and absolute depends on the timestep, for huber and smooth_l1."""

    huber_c: float = 0.1
    """That border, in units of the target: at high noise where it is scheduled, everywhere where constant."""

    huber_scale: float = 1.0
    """Factor on the scheduled border."""

    min_snr_gamma: float | None = None
    """Weigh low-noise steps down above this signal-to-noise ratio; the paper's choice is 5."""

    scale_v_pred_loss_like_noise_pred: bool = False
    """Weigh the loss of a velocity model as if it predicted noise. Needs `v_parameterization`."""

    v_pred_like_loss: float | None = None
    """Strength of a velocity-like weight added to the loss of a noise-predicting model."""

    debiased_estimation_loss: bool = False
    """Weigh each step by the inverse root of its signal-to-noise ratio."""

    prior_loss_weight: float = 1.0
    """Weight of regularisation images relative to training images."""

    masked_loss: bool = False
    """Learn only what a mask shows: the control image's red channel, or the transparency of the image."""

    def __post_init__(self) -> None:
        above(self, 0, "huber_c", "huber_scale")
        at_least(self, 0, "min_snr_gamma")


_HUBER = given("loss_type", "huber", "smooth_l1")

RULES = (
    idle(["huber_c", "huber_schedule"], _HUBER),
    idle(["huber_scale"], _HUBER + given("huber_schedule", "exponential", "constant")),
)
"""What these options mean to others."""
