"""Adapters that act on the model while images are made."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import excludes, given, idle
from sfumato.errors import UserError


@dataclass(frozen=True)
class ImageNetworkConfig:
    """Adapters."""

    network_module: tuple[str, ...] | None = None
    """Network modules, one for each file of weights: networks.lora, or anybody's."""

    network_weights: tuple[str, ...] | None = None
    """Files of weights, one for each network module."""

    network_mul: tuple[float, ...] | None = None
    """Strengths of the networks; those that are missing are 1."""

    network_args: tuple[str, ...] | None = None
    """Arguments of each network in one text: `key=value;key=value`."""

    network_show_meta: bool = False
    """Show the metadata of each file of weights."""

    network_merge: bool = False
    """Merge all networks into the model: quicker steps, strengths stay as they are."""

    network_merge_n_models: int | None = None
    """Merge only this many networks, the first ones."""

    network_pre_calc: bool = False
    """Merge anew for each change of strengths: quicker steps, and strengths may change."""

    network_regional_mask_max_color_codes: int | None = None
    """With regions: how many networks are told apart by the mask's colours instead of its channels."""

    def __post_init__(self) -> None:
        at_least(self, 0, "network_merge_n_models")
        at_least(self, 1, "network_regional_mask_max_color_codes")
        modules, weights = len(self.network_module or ()), len(self.network_weights or ())
        if modules != weights:
            raise UserError(
                f"--network_module names {modules} and --network_weights {weights}; give one for each"
            )


RULES = (
    idle(
        [
            *("network_mul", "network_args", "network_show_meta", "network_merge", "network_pre_calc"),
            *("network_merge_n_models", "network_regional_mask_max_color_codes"),
        ],
        given("network_module"),
    ),
    idle(["network_regional_mask_max_color_codes"], given("mask_path")),
    idle(["network_pre_calc"], among=(given("mask_path"),)),
    idle(["network_merge_n_models"], among=(given("network_merge"),)),
    excludes(["network_pre_calc"], ["network_merge"], "networks are merged once, or for each change"),
)
"""What these options mean to others."""
