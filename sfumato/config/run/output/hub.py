"""Where results go on the Hugging Face hub."""

from dataclasses import dataclass, field

from sfumato.config.rule import given, idle, needs


@dataclass(frozen=True)
class HubConfig:
    """Hugging Face Hub: what is saved there."""

    huggingface_repo_id: str | None = None
    """Repository that receives what is saved, as `user/name`."""

    huggingface_repo_type: str | None = None
    """Kind of that repository: model, dataset or space; model when not given."""

    huggingface_path_in_repo: str | None = None
    """Folder inside the repository for all that is uploaded; its root when not given."""

    huggingface_token: str | None = field(default=None, repr=False)
    """Access token, for fetching models too. Better given in the environment as HF_TOKEN: command lines are
    seen and recorded."""

    huggingface_repo_visibility: str | None = None
    """`public` or `private`, for a repository that is made; private when not given."""

    save_state_to_huggingface: bool = False
    """Upload training states too."""

    resume_from_huggingface: bool = False
    """Fetch the state to resume from the hub: `--resume user/name/path[:revision[:type]]`."""

    async_upload: bool = False
    """Upload while training goes on."""

    model_card: bool = False
    """Write README.md for what is trained, with its previews, settings and trigger words; upload it too."""


RULES = (
    idle(
        [
            *("huggingface_repo_type", "huggingface_path_in_repo", "huggingface_repo_visibility"),
            *("async_upload", "save_state_to_huggingface"),
        ],
        given("huggingface_repo_id"),
    ),
    needs(["resume_from_huggingface"], given("resume")),
)
"""What these options mean to others."""
