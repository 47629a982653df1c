"""Where results go on the Hugging Face hub."""

from dataclasses import dataclass, field

from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class HubConfig:
    """Hugging Face hub."""

    huggingface_repo_id: str | None = None
    """Repository that receives what is saved, as `user/name`."""

    huggingface_repo_type: str | None = None
    """Kind of that repository: model, dataset or space."""

    huggingface_path_in_repo: str | None = None
    """Folder inside the repository."""

    huggingface_token: str | None = field(default=None, repr=False)
    """Access token. Better given in the environment as HF_TOKEN: command lines are seen and recorded."""

    huggingface_repo_visibility: str | None = None
    """`public` or `private`; private when not given."""

    save_state_to_huggingface: bool = False
    """Upload training states too."""

    resume_from_huggingface: bool = False
    """Fetch the state to resume from the hub: `--resume user/name/path:revision:type`."""

    async_upload: bool = False
    """Upload while training goes on."""


RULES = (
    idle(
        [
            *("huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token"),
            *("huggingface_repo_visibility", "async_upload"),
        ],
        given("huggingface_repo_id"),
        given("resume_from_huggingface"),
    ),
)
"""What these options mean to others."""
