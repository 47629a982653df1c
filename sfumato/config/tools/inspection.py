"""Which file's metadata is shown."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class InspectionConfig:
    """The file."""

    model: str = field(default="", metadata={"required": True})
    """File whose metadata to show: .safetensors, of any kind of model."""
