"""A report as JSON for programs."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from sfumato.tools.inspection.problems import marks
from sfumato.tools.inspection.report import DataReport, Shown

_PICTURES_ALONE = ("thumbnail", "mask_thumbnail")


def as_json(report: DataReport) -> str:
    """Return everything but the thumbnails."""
    found = asdict(report)
    found["num_shown"] = report.num_shown
    found["pictures"] = [_picture(shown) for shown in report.pictures]
    return json.dumps(found, indent=1)


def _picture(shown: Shown) -> dict[str, Any]:
    values = {name: value for name, value in vars(shown).items() if name not in _PICTURES_ALONE}
    return values | {"scale": shown.scale, "loss": shown.loss, "marks": marks(shown)}
