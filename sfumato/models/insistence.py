"""What a user says of whole models that their files tell too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InsistenceOptions:
    """What the models are."""

    v2: bool = False
    """Insist that the models are Stable Diffusion 2; files tell, so this is not needed."""

    v_parameterization: bool | None = None
    """Record that the models predict velocity; the first one's metadata or version tells when not given."""

    sdxl: bool = False
    """Insist that the models are SDXL; files tell, so this is not needed."""
