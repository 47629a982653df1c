"""What a training step costs besides forward and backward pass, in a real run of the program.

The run is `flux_train_network.py` as a user starts it: images and captions cached, TensorBoard,
metrics, progress bar, clipping, AdamW. The denoiser's forward pass and the backward pass are timed from
outside, the latter with the release of the graph that it went through; whatever else a step takes is
overhead: data, noise, loss, optimizer, clipping, observers, records. All of it runs on one thread and is
measured in CPU time, so that other programs on the machine do not count.

    python benchmarks/step_overhead.py [--rank 4] [--steps 60] [--caches memory]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from sfumato.cli.main import script
from sfumato.models.families.flux.family import FluxFamily
from sfumato.training.core.audience import Audience
from tests import tiny

WARM_UP = 10
"""Steps that are not counted: allocators and kernels find their form in them."""


class Stopwatch:
    """CPU seconds spent in the functions it wraps."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return `function`, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.total_s += time.process_time() - begin

        return timed


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--caches", choices=["memory", "disk"], default="memory")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        steps_s, models_s = measure(Path(folder), arguments.rank, arguments.steps, arguments.caches)
    overheads = [(step - model) for step, model in zip(steps_s, models_s, strict=True)]
    step_s, overhead_s = statistics.median(steps_s), statistics.median(overheads)
    figures = {
        "rank": arguments.rank,
        "caches": arguments.caches,
        "steps": len(steps_s),
        "step_cpu_ms": round(1e3 * step_s, 2),
        "overhead_cpu_ms": round(1e3 * overhead_s, 2),
        "overhead_share": round(overhead_s / step_s, 4),
    }
    print(json.dumps(figures))


def measure(folder: Path, rank: int, num_steps: int, caches: str) -> tuple[list[float], list[float]]:
    """Return the CPU seconds of each counted step, and those of them in forward and backward."""
    model = tiny.flux(folder / "model", hidden=512, heads=8, depth=4, depth_single=8, dtype=torch.float32)
    tiny.pictures(folder / "data" / "10_cat", 8)
    watch = Stopwatch()
    marks: list[tuple[float, float]] = []
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    kept = FluxFamily.predict, torch.Tensor.backward, Audience._read

    def tell(audience: Audience, reading: Any) -> None:
        marks.append((time.process_time(), watch.total_s))  # once a step, always at the same place of it
        kept[2](audience, reading)

    def backward(loss: torch.Tensor) -> None:
        kept[1](loss)  # stops at the model's output, see `predict`
        watch.around(go_on)()

    def go_on() -> None:
        output, handed_out = outputs.pop()
        kept[1](output, handed_out.grad)
        del output  # and with it the graph, which takes a millisecond

    def predict(*given: Any, **named: Any) -> torch.Tensor:
        output = watch.around(kept[0])(*given, **named)
        outputs.append((output, output.detach().requires_grad_()))
        return outputs[-1][1]

    FluxFamily.predict = predict
    torch.Tensor.backward = backward
    Audience._read = tell
    try:
        with redirect_stderr(io.StringIO()) as said:
            status = script("flux_train_network", options(model, folder, rank, num_steps + WARM_UP, caches))
    finally:
        FluxFamily.predict, torch.Tensor.backward, Audience._read = kept
    if status:
        raise SystemExit(said.getvalue())
    counted = marks[WARM_UP:-1]
    pairs = list(pairwise(counted))
    return [b[0] - a[0] for a, b in pairs], [b[1] - a[1] for a, b in pairs]


def options(model: tiny.TinyFlux, folder: Path, rank: int, num_steps: int, caches: str) -> list[str]:
    """Return the command line of the run: batches of 2, each image 16 tokens and as many of text."""
    suffix = "_to_disk" if caches == "disk" else ""
    return [
        *model.arguments,
        *("--train_data_dir", str(folder / "data"), "--resolution", "64", "--train_batch_size", "2"),
        *("--output_dir", str(folder / "out"), "--output_name", "x", "--logging_dir", str(folder / "logs")),
        *("--network_module", "networks.lora_flux", "--network_train_unet_only", "--network_dim", str(rank)),
        *(f"--cache_latents{suffix}", f"--cache_text_encoder_outputs{suffix}"),
        *("--t5xxl_max_token_length", "16"),
        *("--max_train_steps", str(num_steps), "--seed", "1", "--learning_rate", "1e-4"),
        *("--max_data_loader_n_workers", "0", "--caption_extension", ".txt"),
    ]


if __name__ == "__main__":
    main()
