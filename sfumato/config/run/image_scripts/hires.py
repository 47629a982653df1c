"""Images that are made small first, and large from there."""

from dataclasses import dataclass

from sfumato.config.checks import above, at_least, between
from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class HighresFixConfig:
    """A small first stage."""

    highres_fix_scale: float | None = None
    """Sides of the first stage, as a share of the image's; there is none when not given."""

    highres_fix_steps: int = 28
    """Steps of the first stage."""

    highres_fix_strength: float | None = None
    """How much of a given image the first stage changes, from 0 to 1; as the second when not given."""

    highres_fix_save_1st: bool = False
    """Write the images of the first stage, too."""

    highres_fix_latents_upscaling: bool = False
    """Enlarge latents instead of the decoded image."""

    highres_fix_upscaler: str | None = None
    """Python module whose `create_upscaler` makes what enlarges the images of the first stage."""

    highres_fix_upscaler_args: str | None = None
    """Arguments for it: `key=value;key=value`."""

    highres_fix_disable_control_net: bool = False
    """Let no ControlNet act on the second stage."""

    def __post_init__(self) -> None:
        above(self, 0, "highres_fix_scale")
        at_least(self, 1, "highres_fix_steps")
        between(self, 0, 1, "highres_fix_strength")


RULES = (
    idle(
        [
            *("highres_fix_steps", "highres_fix_strength", "highres_fix_save_1st", "highres_fix_upscaler"),
            *("highres_fix_latents_upscaling", "highres_fix_disable_control_net"),
        ],
        given("highres_fix_scale"),
    ),
    idle(["highres_fix_upscaler_args"], given("highres_fix_upscaler")),
    idle(["highres_fix_latents_upscaling"], among=(given("highres_fix_upscaler"),)),
    idle(["highres_fix_strength"], given("image_path")),
    idle(
        ["highres_fix_disable_control_net"], given("control_net_models"), given("control_net_lllite_models")
    ),
)
"""What these options mean to others."""
