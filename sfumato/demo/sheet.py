"""The contact sheet of the demo: rows of small images, enlarged, each with a title and notes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

TILE_PX = 128
_GAP_PX = 10
_LINE_PX = 16
_TITLE_PX = 26
_PAPER, _INK, _GREY = (250, 249, 246), (30, 30, 30), (110, 110, 110)


@dataclass(frozen=True)
class Tile:
    """One image and what is written below it."""

    image: Image.Image
    note: str


@dataclass(frozen=True)
class Row:
    """Images that belong together."""

    title: str
    tiles: Sequence[Tile]


def contact_sheet(title: str, rows: Sequence[Row]) -> Image.Image:
    """Draw the rows below each other."""
    columns = max(len(row.tiles) for row in rows)
    row_px = _TITLE_PX + TILE_PX + _LINE_PX + _GAP_PX
    size = (columns * (TILE_PX + _GAP_PX) + _GAP_PX, len(rows) * row_px + _TITLE_PX + 2 * _GAP_PX)
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP_PX, _GAP_PX), title, _INK, _font(17))
    for number, row in enumerate(rows):
        top = 2 * _GAP_PX + _TITLE_PX + number * row_px
        draw.text((_GAP_PX, top), row.title, _INK, _font(14))
        for column, tile in enumerate(row.tiles):
            left = _GAP_PX + column * (TILE_PX + _GAP_PX)
            large = tile.image.resize((TILE_PX, TILE_PX), Image.Resampling.NEAREST)
            sheet.paste(large, (left, top + _TITLE_PX - 4))
            draw.text((left, top + _TITLE_PX + TILE_PX - 2), tile.note, _GREY, _font(12))
    return sheet


def _font(size_px: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size_px)
