"""What is told of a data set, and where."""

from dataclasses import dataclass, field
from pathlib import Path

from sfumato.config.checks import at_least


@dataclass(frozen=True)
class ReportConfig:
    """The report."""

    data: Path | None = field(default=None, metadata={"flags": ("data",), "count": "?"})
    """File that describes data sets, or folder of images or of sub-folders named `10_cat`; or use options."""

    family: str | None = None
    """Family of models whose tokens captions are counted in; not counted when not given."""

    html: Path | None = None
    """Page to write: one file with thumbnails, crops, masks and captions, for any browser."""

    json: Path | None = None
    """File to write everything into that is known, for programs."""

    thumbnails: int = 100
    """Most images to show on the page: those with problems first, then some of each bucket."""

    trigger_word: str = ""
    """Word that each caption is to have; those without it are named."""

    skip_pixels: bool = False
    """Read headers alone, which takes seconds for any number; damaged pixels and copies are not noticed."""

    def __post_init__(self) -> None:
        at_least(self, 0, "thumbnails")
