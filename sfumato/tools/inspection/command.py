"""`sfumato inspect`, and `--debug_dataset` of the trainers: show what a model would be trained on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from sfumato.checkpoints.atomic import atomic_file
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.tools.report import ReportConfig
from sfumato.tools.inspection.collecting import collect
from sfumato.tools.inspection.page import as_html
from sfumato.tools.inspection.record import as_json
from sfumato.tools.inspection.report import DataReport
from sfumato.tools.outputs import require_writable

PAGE = "dataset.html"
"""The page that `--debug_dataset` writes into `--output_dir`, or else into the current folder."""

logger = logging.getLogger(__name__)


def inspect(run: Run) -> DataReport:
    """Return the report of a run's data, and write the files that are asked for.

    Raises:
        UserError: there is no data, its description is wrong, or a file cannot be written.
    """
    if ReportConfig in run:
        config = run[ReportConfig]
        run = run.of_family(config.family or "").with_sections(_named(run))
    else:
        config = ReportConfig(html=Path(run[SavingConfig].output_dir or ".") / PAGE)
        run = run.with_sections(config)
    for option, path in (("--html", config.html), ("--json", config.json)):
        if path is not None:
            require_writable(option, path)
    report = collect(run)
    for path, write in ((config.html, as_html), (config.json, as_json)):
        if path is not None:
            _write(path, write(report))
    return report


def _named(run: Run) -> DatasetConfig:
    """Return where the images are, if it was said without an option's name, too."""
    data, config = run[ReportConfig].data, run[DatasetConfig]
    if data is None:
        return config
    return (
        replace(config, train_data_dir=str(data)) if data.is_dir() else replace(config, dataset_config=data)
    )


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))
    logger.info("wrote %s", path)
