import logging

import pytest


@pytest.fixture(autouse=True)
def messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test of the command line may have set for the whole process."""
    logger = logging.getLogger("sfumato")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.INFO)
