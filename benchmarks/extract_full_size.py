"""What it takes to make a LoRA of the difference of two FLUX.1 models of full width.

Changes of rank 32 are planted, their singular values falling from 1 to 0.01, with noise of 2e-5 everywhere.
`layers` compares random directions with the whole decomposition (torch.linalg.svd with
full_matrices=False), layer by layer: CPU seconds of one thread, and the error against what was planted.
`files` writes two checkpoints in bfloat16 and runs `sfumato extract-lora` on them: its private memory at
most (RssAnon, Linux alone), its time, that of its threads (on a busy machine the other says little), and the
error against what was planted, with the rounding of weights on top of the noise. The files need 48 GB of
disk; `--blocks 0.5` makes half as many blocks, of the same size, and needs half of it.

    python benchmarks/extract_full_size.py [--blocks 1] [--folder /tmp] [--layers-only | --files-only]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from sfumato import seeds
from sfumato.checkpoints.tensors import LazyTensor, open_tensors, write_tensors
from sfumato.tools.lowrank import LowRank, decomposed, low_rank

RANK = 32
HIDDEN, MLP, DEPTH, DEPTH_SINGLE = 3072, 12288, 19, 38
NOISE = 2e-5
"""Standard deviation; weights have 0.02."""
SHAPES = {
    "mod.lin": (6 * HIDDEN, HIDDEN),
    "qkv": (3 * HIDDEN, HIDDEN),
    "proj": (HIDDEN, HIDDEN),
    "mlp.0": (MLP, HIDDEN),
    "mlp.2": (HIDDEN, MLP),
    "linear1": (3 * HIDDEN + MLP, HIDDEN),
    "linear2": (HIDDEN, HIDDEN + MLP),
}


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=float, default=1.0, help="share of the model's blocks")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--layers-only", action="store_true")
    parser.add_argument("--files-only", action="store_true")
    arguments = parser.parse_args()
    if not arguments.files_only:
        low_rank(torch.eye(1000), RANK, "warm-up")
        for name, shape in SHAPES.items():
            print(json.dumps({"layer": name, "shape": shape, **compare(name, shape)}), flush=True)
    if not arguments.layers_only:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(json.dumps({"blocks": arguments.blocks, **extract(Path(folder), arguments.blocks)}))


def compare(name: str, shape: tuple[int, int]) -> dict[str, float]:
    """Return CPU seconds and errors of both ways for one layer."""
    left, right = planted(name, shape)
    change = left @ right + NOISE * torch.randn(shape, generator=generator("noise", name))
    start = time.process_time()
    quick = low_rank(change, RANK, name)
    middle = time.process_time()
    whole = decomposed(change).truncated(RANK)
    end = time.process_time()
    errors = [distance(found, left, right) for found in (quick, whole)]
    return {
        "quick_s": round(middle - start, 2),
        "whole_s": round(end - middle, 2),
        "times_faster": round((end - middle) / (middle - start), 1),
        "error": round(errors[0], 5),
        "error_ratio": round(errors[0] / errors[1], 4),
        "missed": round(quick.error / quick.norm, 5),
        "must_miss": round(quick.least_error / quick.norm, 5),
        "truly_must_miss": round(whole.error / whole.norm, 5),
    }


def extract(folder: Path, share: float) -> dict[str, float]:
    """Return what the command needs for two checkpoints, and how near it comes to what was planted."""
    shapes = dict(tensors_of(round(DEPTH * share), round(DEPTH_SINGLE * share)))
    paths = [folder / f"{name}.safetensors" for name in ("original", "tuned")]
    for path, is_tuned in zip(paths, (False, True), strict=True):
        lazy = {name: weight(name, shape, is_tuned) for name, shape in shapes.items()}
        write_tensors(path, lazy)
    target = folder / "lora.safetensors"
    command = f"-m sfumato extract-lora --model_org {paths[0]} --model_tuned {paths[1]} --save_to {target}"
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command.split(), "--dim", str(RANK)])
    peak = 0
    while process.poll() is None:
        peak = max(peak, private_bytes(process.pid))
        time.sleep(0.05)
    if process.returncode:
        sys.exit("the command failed")
    seconds = time.perf_counter() - start
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    errors = list(file_errors(target, shapes))
    return {
        "file_gb": round(paths[0].stat().st_size / 1e9, 2),
        "lora_gb": round(target.stat().st_size / 1e9, 2),
        "num_layers": len(errors),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(spent.ru_utime + spent.ru_stime, 1),
        "private_gb": round(peak / 1e9, 2),
        "worst_error": round(max(errors), 5),
    }


def file_errors(path: Path, shapes: dict[str, tuple[int, ...]]) -> Iterator[float]:
    """Yield how far each layer of a LoRA is from what was planted."""
    with open_tensors(path) as lora:
        for name in shapes:
            layer = f"lora_unet_{name.removesuffix('.weight')}".replace(".", "_")
            if is_changed(name):
                up, down = (lora.get(f"{layer}.lora_{way}.weight") for way in ("up", "down"))
                left, right = planted(name, shapes[name])
                yield product_distance(up, down, left, right) / norm(right)


def tensors_of(depth: int, depth_single: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a FLUX.1 transformer."""
    ends = {"img_in": (64, HIDDEN), "txt_in": (4096, HIDDEN), "final_layer.linear": (HIDDEN, 64)}
    for name, width in {"time_in": 256, "vector_in": 768, "guidance_in": 256}.items():
        ends |= {f"{name}.in_layer": (width, HIDDEN), f"{name}.out_layer": (HIDDEN, HIDDEN)}
    ends["final_layer.adaLN_modulation.1"] = (HIDDEN, 2 * HIDDEN)
    for name, (inputs, outputs) in ends.items():
        yield from linear(name, outputs, inputs)
    for stream in (f"double_blocks.{i}.{side}" for i in range(depth) for side in ("img", "txt")):
        names = {"mod.lin": "mod.lin", "attn.qkv": "qkv", "attn.proj": "proj"}
        for name, kind in (names | {"mlp.0": "mlp.0", "mlp.2": "mlp.2"}).items():
            yield from linear(f"{stream}_{name}", *SHAPES[kind])
        yield f"{stream}_attn.norm.query_norm.scale", (128,)
        yield f"{stream}_attn.norm.key_norm.scale", (128,)
    for block in (f"single_blocks.{i}" for i in range(depth_single)):
        yield from linear(f"{block}.linear1", *SHAPES["linear1"])
        yield from linear(f"{block}.linear2", *SHAPES["linear2"])
        yield from linear(f"{block}.modulation.lin", *SHAPES["qkv"])
        yield f"{block}.norm.query_norm.scale", (128,)
        yield f"{block}.norm.key_norm.scale", (128,)


def linear(name: str, outputs: int, inputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield names and shapes of a Linear layer."""
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def weight(name: str, shape: tuple[int, ...], is_tuned: bool) -> LazyTensor:
    """Return a tensor of a checkpoint."""

    def load() -> Tensor:
        values = noise("base", name, shape, 0.02)
        if is_tuned and is_changed(name):
            left, right = planted(name, shape)
            values = values.bfloat16().float().addmm_(left, right)
            values += noise("noise", name, shape, NOISE)
        return values

    return LazyTensor(torch.bfloat16, shape, lambda: load().bfloat16())


def is_changed(name: str) -> bool:
    """Return whether something is planted in a tensor: in every layer that LoRAs adapt."""
    return "_blocks." in name and name.endswith(".weight")


TILE = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))


def noise(kind: str, name: str, shape: tuple[int, ...], spread: float) -> Tensor:
    """Return normal numbers; rows of matrices are drawn from a long row of such at random places."""
    draw = generator(kind, name)
    if len(shape) == 1:
        return torch.randn(shape, generator=draw) * spread
    starts = torch.randint(0, len(TILE) - shape[1], (shape[0],), generator=draw)
    signs = torch.randint(0, 2, (shape[0], 1), generator=draw) * 2 - 1
    return TILE.unfold(0, shape[1], 1)[starts] * (signs * spread)


def planted(name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return factors (m, 32) and (32, n) of what is planted in a layer: the second has the size of it."""
    draw = generator("planted", name)
    left, right = (torch.linalg.qr(torch.randn(size, RANK, generator=draw))[0] for size in shape)
    return left, torch.logspace(0, -2, RANK)[:, None] * right.T


def generator(*parts: str) -> torch.Generator:
    """Return random numbers that belong to these words."""
    return torch.Generator().manual_seed(seeds.derive(*parts))


def distance(found: LowRank, left: Tensor, right: Tensor) -> float:
    """Return how far an approximation is from what was planted, relative to it."""
    return product_distance(found.left * found.values, found.right, left, right) / norm(right)


def product_distance(up: Tensor, down: Tensor, left: Tensor, right: Tensor) -> float:
    """Return the norm of `up @ down - left @ right`, whose product is never made."""
    first = torch.linalg.qr(torch.cat([up, left], dim=1).double())[1]
    second = torch.linalg.qr(torch.cat([down, -right]).T.double())[1]
    return (first @ second.T).norm().item()


def norm(values: Tensor) -> float:
    """Return the Frobenius norm."""
    return math.sqrt(values.double().square().sum().item())


def private_bytes(process: int) -> int:
    """Return the memory that a process shares with nobody and no file."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
