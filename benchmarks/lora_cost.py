"""What a LoRA adds to a frozen model: forward and backward with it, against the same graph without it.

Both backward passes reach the model's inputs, so that both compute the gradient of every activation; the
LoRA adds its own two products in each direction. The two are timed in turn, one pair after the other, and the
ratio is the median over pairs: what else the machine does hits both alike.

    python benchmarks/lora_cost.py [--rank 16] [--dtype float32] [--pairs 15]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.targets import AdapterTarget

WIDTH, HEADS, BATCH = 512, 8, 2


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the frozen model"
    )
    parser.add_argument("--tokens", type=int, default=16, help="of the image; the text has as many")
    parser.add_argument("--pairs", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = frozen_model(getattr(torch, given.dtype))
    network = lora(model, given.rank)
    step = step_of(model, given.tokens)
    plain_s, lora_s = compare(network, step, given.pairs)
    figures = {
        "rank": given.rank,
        "dtype": given.dtype,
        "layers": len(network.layers),
        "tokens": 2 * given.tokens * BATCH,
        "plain_ms": round(1e3 * statistics.median(plain_s), 2),
        "lora_ms": round(1e3 * statistics.median(lora_s), 2),
        "cost": round(statistics.median(b / a for a, b in zip(plain_s, lora_s, strict=True)) - 1, 4),
    }
    print(json.dumps(figures))


def frozen_model(dtype: torch.dtype) -> Flux:
    """Return a FLUX of width 512 with 4 double and 8 single blocks."""
    axes = (8, 28, 28)
    shape = FluxShape(WIDTH, HEADS, 4, 8, 64, WIDTH, WIDTH, 4 * WIDTH, axes)
    return Flux(shape).to(dtype).requires_grad_(False).eval()


def lora(model: Flux, rank: int) -> AdapterNetwork:
    """Return a LoRA of every Linear inside the blocks, the layers that FLUX's LoRA adapts."""
    names = (name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    targets = [
        AdapterTarget(f"unet_{name.replace('.', '_')}", model.get_submodule(name), name, DENOISER)
        for name in names
        if "_blocks." in name
    ]
    return AdapterNetwork.from_targets(targets, lambda target: Lora(target, rank, rank))


def step_of(model: Flux, tokens: int) -> Callable[[], None]:
    """Return a forward and backward pass on fixed inputs that require gradients."""
    dtype = model.img_in.weight.dtype
    draw = {"dtype": dtype, "requires_grad": True}
    img, txt = torch.randn(BATCH, tokens, 64, **draw), torch.randn(BATCH, tokens, WIDTH, **draw)
    vector = torch.randn(BATCH, WIDTH, **draw)
    ids, levels = torch.zeros(BATCH, tokens, 3), torch.tensor([0.3, 0.7])

    def autocast() -> AbstractContextManager[object]:
        return nullcontext() if dtype is torch.float32 else torch.autocast("cpu", dtype=dtype)

    def step() -> None:
        with autocast():
            output: Tensor = model(img, ids, txt, ids, levels, vector, torch.ones(BATCH))
            loss = output.float().square().mean()
        loss.backward()

    return step


def compare(network: AdapterNetwork, step: Callable[[], None], pairs: int) -> tuple[list[float], list[float]]:
    """Return seconds without and with the adapter, in turn; the first two pairs are not counted."""
    plain_s, lora_s = [], []
    for _ in range(pairs + 2):
        network.detach()
        plain_s.append(seconds(step))
        network.attach()
        lora_s.append(seconds(step))
    return plain_s[2:], lora_s[2:]


def seconds(step: Callable[[], None]) -> float:
    """Return how long one step takes."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
