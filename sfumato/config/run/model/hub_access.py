"""Whether models may be fetched from the Hugging Face Hub."""

from dataclasses import dataclass


@dataclass(frozen=True)
class HubAccessConfig:
    """Hugging Face Hub: fetching."""

    offline: bool = False
    """Fetch nothing: models named as on the Hub must be in its cache. HF_HUB_OFFLINE=1 says the same."""
