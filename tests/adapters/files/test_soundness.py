"""Tensors whose shapes no adapter has are one line, before anything is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfumato.adapters.files.soundness import require_sound
from sfumato.errors import UserError

HALVES = {"lora_down.weight": torch.ones(2, 4), "lora_up.weight": torch.ones(4, 2)}


@pytest.mark.parametrize(
    ("leaves", "message"),
    [
        ({"lokr_w1": torch.ones(2), "lokr_w2": torch.ones(2, 2)}, "x.lokr_w1 is 2 and no matrix"),
        ({**HALVES, "alpha": torch.ones(5)}, "x.alpha holds 5 values instead of one"),
        ({**HALVES, "lora_mid.weight": torch.ones(2, 2)}, "x.lora_mid.weight is 2x2 and no kernel"),
        ({**HALVES, "reshape_weight": torch.ones(2, 2)}, "x.reshape_weight is 2x2 and no list of sides"),
        ({"oft_blocks": torch.tensor(1.0)}, "x.oft_blocks is a number and no matrices"),
        ({"oft_R.weight": torch.tensor(1.0)}, "x.oft_R.weight is a number and no matrix"),
        ({"diff": torch.tensor(0.5), "diff_b": torch.ones(4)}, "x.diff is a number and no weight"),
        ({"lora_down.weight": torch.ones(0, 4), "lora_up.weight": torch.ones(4, 0)}, "is empty"),
        ({**HALVES, "dora_scale": torch.tensor([float("nan")])}, "holds values that are no numbers"),
    ],
)
def test_odd_shapes_are_refused(leaves: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_sound(Path("f"), {"x": leaves})


def test_whole_layers_pass() -> None:
    require_sound(Path("f"), {"x": {**HALVES, "alpha": torch.tensor([1.0]), "dora_scale": torch.ones(4, 1)}})
