"""A state that was saved on a processor goes on where the weights are now."""

from __future__ import annotations

import pytest
import torch

from sfumato.training.state.optimizer_state import beside


@pytest.mark.parametrize(
    ("group", "place"), [({}, "cpu"), ({"fused": True}, "meta"), ({"capturable": True}, "meta")]
)
def test_moments_follow_the_weights_and_steps_only_where_they_are_read(
    group: dict[str, bool], place: str
) -> None:
    parameter = torch.nn.Parameter(torch.empty(2, device="meta"))
    values = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "d": 0.5}
    moved = beside(parameter, values, group)
    assert moved["exp_avg"].device.type == "meta"
    assert moved["step"].device.type == place
    assert moved["d"] == 0.5
