"""How the Hub is reached: where it is, as whom, and whether it may be."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.output.hub import HubConfig
from sfumato.config.run.run import Run
from sfumato.hub.names import HubName

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_FOLDERS = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class HubAccess:
    """Whether and as whom the Hub is asked.

    Attributes:
        token: None takes that of HF_TOKEN or `hf auth login`.
        is_refused: nothing may be fetched; the environment's HF_HUB_OFFLINE says so for all programs.
    """

    token: str | None = field(default=None, repr=False)
    is_refused: bool = False

    @property
    def is_offline(self) -> bool:
        """Whether the network is left alone."""
        from huggingface_hub import constants

        return self.is_refused or constants.HF_HUB_OFFLINE

    @property
    def endpoint(self) -> str:
        """The Hub's address: HF_ENDPOINT, or the public one."""
        from huggingface_hub import constants

        return os.environ.get("HF_ENDPOINT", constants.ENDPOINT).rstrip("/")

    def api(self) -> HfApi:
        """Return the client, as which alone the Hub is asked."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.token)

    def address(self, name: HubName) -> str:
        """Return the page of a repository."""
        return f"{self.endpoint}/{_FOLDERS[name.kind]}{name.repo}"


ANYBODY = HubAccess()
"""As the environment has it."""


def access_for(run: Run) -> HubAccess:
    """Return how a run reaches the Hub."""
    token = run.get(HubConfig, HubConfig()).huggingface_token
    return HubAccess(token, run.get(HubAccessConfig, HubAccessConfig()).offline)
