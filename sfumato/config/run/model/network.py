"""The adapter that is trained, and which parts of the base it touches."""

from dataclasses import dataclass

from sfumato.config.checks import at_least, between, importable
from sfumato.config.rule import excludes, given, idle, needs
from sfumato.errors import UserError

MOST_RANKS = 1_000_000
"""More than any layer has; tensors of many more could not even be counted."""


@dataclass(frozen=True)
class NetworkConfig:
    """Adapter."""

    network_module: str | None = None
    """Kind of adapter by its module name: `networks.lora_flux` for example, or a module of your own."""

    network_dim: int | None = None
    """Rank of the adapter; more learns more detail and makes a larger file. 4 when not given."""

    network_alpha: float = 1
    """The adapter acts with strength alpha divided by rank; 0 means equal to the rank."""

    network_dropout: float | None = None
    """Probability, 0 to 1, that an element inside the adapter is dropped in a training step."""

    network_args: tuple[str, ...] | None = None
    """Further arguments of the adapter as `name=value`."""

    network_weights: str | None = None
    """Adapter file to start from."""

    dim_from_weights: bool = False
    """Take ranks from the file given as `network_weights`."""

    network_train_unet_only: bool = False
    """Train the denoiser's part of the adapter alone. Allows captions to be encoded once."""

    network_train_text_encoder_only: bool = False
    """Train the text encoders' part of the adapter alone."""

    unet_lr: float | None = None
    """Learning rate of the denoiser's part; `learning_rate` when not given."""

    text_encoder_lr: tuple[float, ...] | None = None
    """Learning rates of the text encoders' part, one for all or each; `learning_rate` when not given."""

    scale_weight_norms: float | None = None
    """Scale adapter weights down to this norm after every step, 1 to begin with; 0 is off."""

    base_weights: tuple[str, ...] | None = None
    """Adapter files merged into the base before training, so that the new adapter learns what they lack."""

    base_weights_multiplier: tuple[float, ...] | None = None
    """Strength of each of the `base_weights`; 1 where none is given."""

    def __post_init__(self) -> None:
        importable(self, "network_module")
        between(self, 1, MOST_RANKS, "network_dim")
        at_least(self, 0, "network_alpha")
        between(self, 0.0, 1.0, "network_dropout")
        if self.network_dropout == 1:
            raise UserError("--network_dropout is 1, which leaves out everything; use less")


RULES = (
    excludes(
        ["network_train_unet_only"],
        ["network_train_text_encoder_only"],
        "together they leave nothing to train",
    ),
    needs(["dim_from_weights"], given("network_weights")),
    needs(["base_weights_multiplier"], given("base_weights")),
    idle(["unet_lr"], among=(given("network_train_text_encoder_only"),)),
)
"""What these options mean to others."""
