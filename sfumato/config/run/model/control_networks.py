"""Networks that make a model follow control images: what is trained, and from which file it goes on."""

from dataclasses import dataclass

from sfumato.config.checks import at_least, between
from sfumato.config.rule import Values, given, idle, implies_from


@dataclass(frozen=True)
class ControlNetConfig:
    """ControlNet."""

    controlnet_model_name_or_path: str | None = None
    """File or folder of a ControlNet to go on from, or its name on the Hugging Face Hub; a new one is made of
    the base model when not given."""

    controlnet_model_path: str | None = None
    """Older spelling of `controlnet_model_name_or_path`."""

    control_net_lr: float | None = None
    """Learning rate of the layers that the base model has not; `learning_rate` when not given."""

    def __post_init__(self) -> None:
        at_least(self, 0, "control_net_lr")


@dataclass(frozen=True)
class LLLiteConfig:
    """ControlNet-LLLite."""

    cond_emb_dim: int | None = None
    """Channels of what is read off the control image; 32 when not given."""

    network_dim: int | None = None
    """Width of the small networks; 64 when not given."""

    network_weights: str | None = None
    """File of a ControlNet-LLLite to go on from; it knows its sizes."""

    network_dropout: float | None = None
    """Probability, 0 to 1, that an element inside the small networks is dropped in a training step."""

    def __post_init__(self) -> None:
        at_least(self, 2, "cond_emb_dim")
        at_least(self, 1, "network_dim")
        between(self, 0.0, 1.0, "network_dropout")


def _as_newer(values: Values) -> Values:
    path = values["controlnet_model_name_or_path"] or values["controlnet_model_path"]
    return {"controlnet_model_path": None, "controlnet_model_name_or_path": path}


LLLITE_RULES = (idle(["cond_emb_dim", "network_dim"], among=(given("network_weights"),)),)
"""What the options of ControlNet-LLLite mean to each other."""

RULES = (
    implies_from(
        "controlnet_model_path",
        _as_newer,
        "--controlnet_model_path is read as controlnet_model_name_or_path: {controlnet_model_name_or_path}",
    ),
)
"""What the options of ControlNets mean to each other."""
