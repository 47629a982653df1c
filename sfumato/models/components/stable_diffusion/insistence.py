"""What a user says of whole models that their files tell too."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class InsistenceOptions:
    """What the models are."""

    v2: bool = False
    """Insist that the models are Stable Diffusion 2; files tell, so this is not needed."""

    v_parameterization: bool | None = None
    """Record that the models predict velocity; their files or version tell when not given."""

    prediction_type: Literal["auto", "epsilon", "v_prediction"] = "auto"
    """Record that the models predict noise (epsilon) or velocity (v_prediction), whatever their files say."""

    sdxl: bool = False
    """Insist that the models are SDXL; files tell, so this is not needed."""
