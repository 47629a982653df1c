"""Previews of discrete-time models: samplers by sd-scripts' names, the schedule that is trained with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.run.output.preview import PreviewConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.models.interface.family import Prediction
from sfumato.training.observers import preview
from sfumato.training.observers.preview import Previews
from tests.sampling.fake import FakeFamily


def planned(folder: Path, text: str, *, zero_terminal: bool = False, sampler: Any = "ddim") -> Previews:
    family: Any = FakeFamily()
    family.prediction = Prediction.VELOCITY
    path = folder / "prompts.txt"
    path.write_text(text, encoding="utf-8")
    config = PreviewConfig(sample_prompts=str(path), sample_at_first=True, sample_sampler=sampler)
    made = preview.plan(config, NoiseConfig(zero_terminal_snr=zero_terminal), family)
    assert made is not None
    return made


@pytest.mark.parametrize(
    ("line", "option", "sampler", "warning"),
    [
        ("a", "ddim", "ddim", None),
        ("a", "k_dpm_2_a", "dpm_2_a", None),
        ("a --ss dpmsolver++", "lms", "dpmsolver++", None),
        ("a --ss oiler", "euler", "ddim", "with ddim instead of oiler (oiler is no sampler's name)"),
    ],
)
def test_names_of_samplers_mean_what_they_say(
    line: str,
    option: str,
    sampler: str,
    warning: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)
    previews = planned(tmp_path, line + " --w 64 --h 64", sampler=option)
    assert [prompt.request.sampler for prompt in previews.prompts] == [sampler]
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or warning in caplog.text


def test_previews_follow_the_schedule_that_is_trained_with(tmp_path: Path) -> None:
    assert not planned(tmp_path, "a").zero_terminal
    assert planned(tmp_path, "a", zero_terminal=True).zero_terminal
