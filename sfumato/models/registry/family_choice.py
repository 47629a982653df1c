"""Options by which tools that work on several families are told which one is meant."""

from dataclasses import dataclass

from sfumato.errors import UserError


@dataclass(frozen=True)
class FamilyChoice:
    """The family of models."""

    sdxl: bool = False
    """The model is SDXL; Stable Diffusion 1 or 2 when no family is given."""

    flux: bool = False
    """The model is FLUX.1."""

    def __post_init__(self) -> None:
        if self.sdxl and self.flux:
            raise UserError("--sdxl excludes --flux: a model is of one family")

    @property
    def family(self) -> str:
        """The family's name."""
        return "flux" if self.flux else "sdxl" if self.sdxl else "sd"
