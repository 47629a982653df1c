"""Settings of regions: parts of an image that each follow a prompt, and an adapter, of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Regions:
    """Where each sub-prompt holds; sub-prompts are what ` AND ` divides in a prompt.

    Attributes:
        mask: file of an image; its red, green and blue say where the first three sub-prompts hold.
        num_colors: with a number n, sub-prompt i < n holds where the color is exactly that of the bits of
            i + 1: bit 0 red, bit 1 green, bit 2 blue.
    """

    mask: str
    num_colors: int | None = None
