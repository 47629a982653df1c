"""Where prompts come from, and which seeds their images have."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class PromptSourceConfig:
    """Prompts and seeds."""

    prompt: str | None = None
    """A prompt, with options of its own behind it if you like: `a cat --w 512 --d 1`."""

    from_file: str | None = None
    """Text file with a prompt in each line; blank lines and lines that begin with # are skipped."""

    from_module: str | None = None
    """Python file whose function `get_prompter(args, pipe, networks)` returns what makes the prompts."""

    prompter_module_args: str | None = None
    """Options for that file, as it reads them from `args`."""

    interactive: bool = False
    """Ask for one prompt after the other; an empty line asks again, the end of the input ends the program."""

    no_preview: bool = False
    """Show no window with each image of an interactive run."""

    images_per_prompt: int = 1
    """Images of each prompt."""

    n_iter: int = 1
    """How many times all prompts are gone through."""

    shuffle_prompts: bool = False
    """Go through the prompts in another order each time."""

    seed: int | None = None
    """Seed that the seeds of all images are drawn of, or of the image itself where there is only one."""

    iter_same_seed: bool = False
    """Give all images of one round through the prompts the same seed."""

    def __post_init__(self) -> None:
        at_least(self, 1, "images_per_prompt", "n_iter")
        at_least(self, 0, "seed")


RULES = (
    idle(["prompter_module_args"], given("from_module")),
    idle(
        ["prompt", "from_file", "from_module", "n_iter", "shuffle_prompts", "iter_same_seed"],
        among=(given("interactive"),),
    ),
    idle(["prompt", "from_module"], among=(given("from_file"),)),
    idle(["prompt"], among=(given("from_module"),)),
    idle(["no_preview"], given("interactive")),
)
"""What these options mean to others."""
