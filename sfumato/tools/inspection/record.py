"""A report as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sfumato.tools.inspection.problems import marks
from sfumato.tools.inspection.report import DataReport, Shown

_FOR_PAGES = ("thumbnail", "mask_thumbnail")
_OLD_KEYS = {
    "images": "pictures",
    "num_images": "num_pictures",
    "is_validation": "is_held_back",
    "num_validation": "num_held_back",
}
"""What values were called in version 0.1: programs find them under both names."""


def as_json(report: DataReport) -> str:
    """Return everything but the thumbnails."""
    found = asdict(report)
    found["num_shown"] = report.num_shown
    found["images"] = [_image(shown) for shown in report.images]
    return json.dumps(_with_old_keys(found), indent=1)


def _image(shown: Shown) -> dict[str, Any]:
    values = {name: value for name, value in vars(shown).items() if name not in _FOR_PAGES}
    return values | {"scale": shown.scale, "loss": shown.loss, "marks": marks(shown)}


def _with_old_keys(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_with_old_keys(each) for each in value]
    if not isinstance(value, dict):
        return value
    known = {key: _with_old_keys(each) for key, each in value.items()}
    return known | {_OLD_KEYS[key]: each for key, each in known.items() if key in _OLD_KEYS}
