"""Options of rewriting an adapter with other names."""

from dataclasses import dataclass, field

from sfumato.config.rule import excludes
from sfumato.errors import UserError

PROGRAMS = ("comfyui", "diffusers", "invokeai", "sd-scripts")


@dataclass(frozen=True)
class AdapterExchangeConfig:
    """The conversion."""

    src: str = "ai-toolkit"
    """How the file is written: `ai-toolkit` (diffusers' names) or `sd-scripts`."""

    dst: str = "sd-scripts"
    """How it is to be written: the other of the two."""

    src_path: str | None = None
    """Adapter file to read."""

    dst_path: str | None = None
    """Adapter file to write."""

    for_program: str | None = field(default=None, metadata={"flags": ("--for",), "choices": PROGRAMS})
    """Write a file of any naming and model in the form of which this program loads most."""

    def __post_init__(self) -> None:
        kinds = ("ai-toolkit", "sd-scripts")
        for name in ("src", "dst"):
            if getattr(self, name) not in kinds:
                raise UserError(f"--{name} is {getattr(self, name)!r}; give {' or '.join(kinds)}")
        if self.src == self.dst:
            raise UserError(f"--src and --dst are both {self.src}; give the other one to --dst")


RULES = (excludes(["src", "dst"], ["for_program"], "--for reads any naming and chooses the form itself"),)
