"""What is written, where and how often."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least
from sfumato.config.rule import given, idle
from sfumato.console import printable
from sfumato.errors import UserError

FOLDER_FORMATS = ("diffusers", "diffusers_safetensors")
"""Values of `save_model_as` that write a folder."""

MODEL_FORMATS = (None, "ckpt", "safetensors", *FOLDER_FORMATS)
"""Values of `save_model_as` in scripts that train whole models; None is the form of the base."""


@dataclass(frozen=True)
class SavingConfig:
    """Saving."""

    output_dir: str | None = None
    """Folder for everything that the run writes."""

    output_name: str | None = None
    """Name of the saved files, without suffix."""

    save_model_as: Literal[None, "ckpt", "pt", "safetensors", "diffusers", "diffusers_safetensors"] = field(
        default="safetensors", metadata={"choices": (None, "ckpt", "pt", "safetensors")}
    )
    """File format; prefer safetensors: ckpt and pt are pickled files. Whole models can be saved as folders in
    the layout of diffusers."""

    save_precision: Literal[None, "float", "fp16", "bf16"] = None
    """Dtype of saved weights; that of training when not given."""

    save_every_n_epochs: int | None = None
    """Save after every n-th epoch."""

    save_every_n_steps: int | None = None
    """Save after every n-th step."""

    save_n_epoch_ratio: int | None = None
    """Save at least this many times, spread over the run; wins over `save_every_n_epochs`."""

    save_last_n_epochs: int | None = None
    """Keep only what was saved in the last n epochs."""

    save_last_n_epochs_state: int | None = None
    """The same for training states; `save_last_n_epochs` when not given."""

    save_last_n_steps: int | None = None
    """Keep only what was saved in the last n steps."""

    save_last_n_steps_state: int | None = None
    """The same for training states; `save_last_n_steps` when not given."""

    save_state: bool = False
    """Save optimizer and everything else that is needed to resume, each time and at the end."""

    save_state_on_train_end: bool = False
    """Save the training state at the end alone."""

    resume: str | None = None
    """Folder of a saved training state to go on from."""

    no_metadata: bool = False
    """Write files without the description of how they were trained."""

    training_comment: str | None = None
    """Free text that is written into the metadata of saved files."""

    def __post_init__(self) -> None:
        if self.output_name and (set(self.output_name) & set("/\\") or self.output_name in (".", "..")):
            raise UserError(
                f"--output_name is {self.output_name!r}; it names files, so give folders as --output_dir"
            )
        if self.output_name and printable(self.output_name) != self.output_name:
            raise UserError(
                f"--output_name is {self.output_name!r}; leave out what cannot be printed, for files bear it"
            )
        at_least(self, 1, "save_every_n_epochs", "save_every_n_steps", "save_n_epoch_ratio")
        at_least(self, 1, "save_last_n_epochs", "save_last_n_steps")
        at_least(self, 1, "save_last_n_epochs_state", "save_last_n_steps_state")


RULES = (
    idle(
        ["save_last_n_epochs", "save_last_n_epochs_state"],
        given("save_every_n_epochs"),
        given("save_n_epoch_ratio"),
    ),
    idle(["save_last_n_steps", "save_last_n_steps_state"], given("save_every_n_steps")),
    idle(["save_last_n_epochs_state", "save_last_n_steps_state"], given("save_state")),
)
"""What these options mean to others."""
