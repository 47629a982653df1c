"""`sfumato rerun RECORD`: start a recorded run again, and say what has changed since."""

import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sfumato.cli.product import show
from sfumato.cli.scripts import script_named
from sfumato.cli.start import start
from sfumato.config.public import to_toml
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError

if TYPE_CHECKING:
    from sfumato.training.core.record import RunRecord

USAGE = """usage: sfumato rerun RECORD [options]

Start the run of that record (OUTPUT_DIR/OUTPUT_NAME.run.json) again, with the same options and seed but for
those that follow, and say which versions, files, images and captions are others now. Give the new run another
--output_name or --output_dir: what the first one saved is not overwritten.
"""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Start a run again; return the exit status.

    Raises:
        UserError: the record cannot be read, or the run would overwrite the first one's output.
    """
    if argv and argv[0] in ("-h", "--help"):
        show(USAGE.rstrip())
        return 0
    if not argv or argv[0].startswith("-"):
        raise UserError("write sfumato rerun RECORD, e.g. sfumato rerun outputs/my-lora.run.json")
    from sfumato.training.core.record import read_record
    from sfumato.training.core.run_files import record_for

    given, *options = argv
    if any(word.partition("=")[0] == "--config_file" for word in options):
        raise UserError("--config_file cannot be used with rerun, which has the options of the record")
    record = read_record(record_for(Path(given)))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "options.toml"
        try:
            file.write_text(to_toml({**record.options, "seed": record.seed}), "utf-8")
        except ValueError as error:
            raise UserError(f"{given} holds no options of a run: {error}; give another record") from None
        asked = ["--config_file", str(file), *options]
        return start(script_named(record.script), asked, prog="sfumato rerun", work=partial(_rerun, record))


def _rerun(record: "RunRecord", run: Run) -> int:
    from sfumato.training.run.setup import train
    from sfumato.training.state.comparison import Comparison

    _check_output(record, run)
    if record.folder != os.getcwd():
        logger.warning("the run was started in %s; relative paths now count from here", record.folder)
    train(run, [Comparison(record)], signals=True)
    return 0


def _check_output(record: "RunRecord", run: Run) -> None:
    from sfumato.training.observers.saving import names_for

    saving = run[SavingConfig]
    names = names_for(saving)
    first = record.settings.get("output_dir"), record.settings.get("output_name")
    found = next((path for path in (names.last(), names.record(), names.metrics()) if path.exists()), None)
    if found is not None and first == (saving.output_dir, saving.output_name):
        raise UserError(f"{found} is there already; give the new run another --output_name or --output_dir")
