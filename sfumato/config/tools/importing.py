"""Which run of another trainer is taken over, and where its files go."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ImportingConfig:
    """The run of another trainer."""

    file: str = field(default="", metadata={"flags": ("file",), "required": True})
    """Preset of kohya_ss (JSON), configuration of OneTrainer (JSON), of AI-toolkit (YAML), or of SimpleTuner
    (JSON or ENV, with the data backends that it names)."""

    output: str | None = None
    """File to write, by default the name of `file` with .sfumato.toml at its end. Data sets and prompts get
    names that begin alike."""
