"""Loss masks for the images of a folder."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least, between
from sfumato.config.rule import given, idle, needs
from sfumato.errors import UserError


@dataclass(frozen=True)
class MaskingConfig:
    """Images, and what of them is to count."""

    train_data_dir: str = field(default="", metadata={"flags": ("train_data_dir",), "required": True})
    """Folder of the images."""

    mask_dir: str = field(default="", metadata={"required": True})
    """Folder for the masks; made if it is not there. A data set's `mask_dir` names it."""

    mask_from: Literal["alpha", "faces", "colour", "model"] = "alpha"
    """What counts: what is not transparent, faces, what has another colour than one, what a model finds."""

    colour: str = "#ffffff"
    """With `colour`: the colour of what does not count, as #rrggbb."""

    tolerance: int = 16
    """With `colour`: levels of 255 by which a channel may differ from it."""

    model: str | None = None
    """With `model`: an ONNX file that finds the foreground; a path, or user/name/file.onnx on the Hub."""

    model_mean: str = "0.485,0.456,0.406"
    """With `model`: what it wants subtracted from red, green and blue in 0..1."""

    model_std: str = "0.229,0.224,0.225"
    """With `model`: what it wants them divided by afterwards."""

    face_margin: float = 0.3
    """With `faces`: share of a face that counts, too, on each side of it."""

    grow: int = 0
    """Pixels by which what counts is made larger on all sides."""

    blur: float = 0.0
    """Radius in pixels over which the border is softened."""

    invert: bool = False
    """Let count what would not, and the other way round."""

    least: float = 0.0
    """How much counts what does not count: 0 nothing, 1 as much as the rest."""

    skip_existing: bool = False
    """Leave masks as they are that are there already."""

    contact_sheet: str | None = None
    """Image with the masks over the images, to look at; `mask_dir` with `_sheet.jpg` when not given."""

    def __post_init__(self) -> None:
        at_least(self, 0, "tolerance", "grow", "blur", "face_margin")
        between(self, 0, 1, "least")
        _ = self.background, self.mean, self.std

    @property
    def background(self) -> tuple[int, int, int]:
        """Red, green and blue of `colour`."""
        digits = self.colour.removeprefix("#")
        try:
            red, green, blue = bytes.fromhex(digits)
        except ValueError:
            raise UserError(f"--colour is {self.colour}; write it as #rrggbb, white is #ffffff") from None
        return red, green, blue

    @property
    def mean(self) -> tuple[float, ...]:
        """`model_mean` for each channel."""
        return _three("model_mean", self.model_mean)

    @property
    def std(self) -> tuple[float, ...]:
        """`model_std` for each channel."""
        return _three("model_std", self.model_std)


def _three(name: str, text: str) -> tuple[float, ...]:
    try:
        red, green, blue = map(float, text.split(","))
    except ValueError:
        raise UserError(f"--{name} is {text}; write three numbers as 0.5,0.5,0.5") from None
    if name == "model_std" and not min(red, green, blue) > 0:
        raise UserError(f"--{name} is {text}; use numbers above 0")
    return red, green, blue


RULES = (
    idle(["colour", "tolerance"], given("mask_from", "colour")),
    idle(["model", "model_mean", "model_std"], given("mask_from", "model")),
    idle(["face_margin"], given("mask_from", "faces")),
    needs(["mask_from"], given("model"), among=(given("mask_from", "model"),)),
)
"""What the options of `MaskingConfig` mean to each other."""
