"""What is read beside the first steps, and what becomes of a run if it cannot be read."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from sfumato.errors import UserError
from sfumato.training.core.readings import Reading
from sfumato.training.run.run_record import BackgroundReading, RecordFile


def test_metadata_that_cannot_be_made_ends_the_run_when_a_step_is_read(tmp_path: Path) -> None:
    metadata: Future[dict[str, str]] = Future()
    record, step = cast(Any, None), cast(Reading, None)
    kept = RecordFile(tmp_path / "run.json", record, BackgroundReading(metadata, {}))
    kept.read(step)  # nobody waits for it
    metadata.set_exception(OSError(5, "Input/output error", "base.safetensors"))
    with pytest.raises(UserError, match=r"base.safetensors can no longer be read \(Input/output error\)"):
        kept.read(step)
    fine: Future[dict[str, str]] = Future()
    fine.set_result({})
    RecordFile(tmp_path / "run.json", record, BackgroundReading(fine, {})).read(step)
