"""Which adapter file is looked at."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class CheckingConfig:
    """The file."""

    file: str = field(default="", metadata={"flags": ("file",), "required": True})
    """Adapter file to look at."""

    show_all_keys: bool = field(default=False, metadata={"flags": ("-s", "--show_all_keys")})
    """List every tensor with its shape, its mean magnitude and its largest value."""

    json: bool = False
    """Print everything as JSON, for programs; sizes, alphas and norms then stand layer by layer."""
