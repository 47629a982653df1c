"""The processes that read images while the device computes."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import given, implies


@dataclass(frozen=True)
class LoaderConfig:
    """Data loader."""

    max_data_loader_n_workers: int = 8
    """Processes that read data, at most one per CPU core; 0 reads in the main process."""

    persistent_data_loader_workers: bool = False
    """Keep the reading processes between epochs: no pause there, a little more memory."""

    def __post_init__(self) -> None:
        at_least(self, 0, "max_data_loader_n_workers")


RULES = (
    implies(
        "persistent_data_loader_workers",
        {"persistent_data_loader_workers": False},
        "--max_data_loader_n_workers 0 leaves persistent_data_loader_workers nothing to keep",
        among=(given("max_data_loader_n_workers", 0),),
    ),
)
"""What these options mean to others."""
