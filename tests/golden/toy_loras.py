"""The small LoRAs that recorded tools were given."""

import torch
from torch import Tensor

from tests.golden.derived import rule, settings


def toy_lora(fixture: str, name: str) -> dict[str, Tensor]:
    """Return a recorded input: layers of all kinds, their numbers derived from their names."""
    lora = settings(fixture)["loras"][name]
    tensors: dict[str, Tensor] = {}
    prefix = lora["K"].partition("<name>")[0]
    for layer, (kind, rows, columns) in lora["modules"].items():
        rank = lora["conv3_rank"] if kind == "conv3" else lora["rank"]
        side = {"lin": (), "conv1": (1, 1), "conv3": (3, 3)}[kind]
        shapes = {"lora_down": (rank, columns, *side), "lora_up": (rows, rank, *[1] * len(side))}
        for way, shape in shapes.items():
            key = f"{layer}.{way}.weight"
            tensors[key] = rule(prefix + key, shape) * lora["std"]
        tensors[f"{layer}.alpha"] = torch.tensor(lora["alpha"])
    return tensors
