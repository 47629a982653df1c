"""The record of a run: whether its process is still there."""

import subprocess
import sys
from dataclasses import replace

import psutil
import pytest

from sfumato.training.core.record import ProcessRecord, this_process


@pytest.mark.skipif(sys.platform == "win32", reason="a process of Windows is gone at once")
def test_a_process_is_gone_when_it_was_killed_even_if_nobody_has_taken_notice() -> None:
    assert not this_process().is_gone
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = ProcessRecord(this_process().host, process.pid, psutil.Process(process.pid).create_time())
    assert not record.is_gone
    assert replace(record, created_s=record.created_s - 60).is_gone  # another has its number
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert record.is_gone
    process.communicate()
    assert record.is_gone
