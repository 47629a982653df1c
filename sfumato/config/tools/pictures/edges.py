"""The edges in an image."""

from dataclasses import dataclass

from sfumato.config.checks import present


@dataclass(frozen=True)
class EdgesConfig:
    """An image, and the edges in it."""

    input: str | None = None
    """Image to read."""

    output: str | None = None
    """Image to write, white edges on black."""

    thres1: int = 32
    """Least contrast of an edge that goes on from a stronger one."""

    thres2: int = 224
    """Least contrast with which an edge begins."""

    def __post_init__(self) -> None:
        present(self, "give --input IMAGE --output IMAGE", "input", "output")
