"""Merge two LoRAs into a FLUX.1 checkpoint of full size, and convert it: time against a copy, and memory.

The checkpoint holds random bfloat16 values (23.8 GB at all blocks). Memory is private memory (RssAnon) of the
process that works, at its peak: pages of mapped files are the disk's, and can be dropped at any time. Each
command is compared with copies of what it reads, made before and after it, which end when the data is on the
disk, as all that is written here does. Whatever the system remembers of files is dropped before each (root
may do that); otherwise the second to read a file would find it in memory. Files are removed at once when
nothing needs them: three of full size lie on the disk at a time.

    python benchmarks/merge_full_size.py [--share 1.0] [--folder /tmp] [--rank 16]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from sfumato.checkpoints.tensors import LazyTensor, write_tensors
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.families.flux.targets import denoiser_targets
from sfumato.models.interface.family import DENOISER

ROOT = Path(__file__).resolve().parents[1]
CHUNK = 1 << 24


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the blocks; less where disk is short")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    shape = FluxShape(depth=max(1, round(19 * given.share)), depth_single=max(1, round(38 * given.share)))
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="sfumato-merge-") as name:
        print(json.dumps(measured(Path(name), shape, given.rank), indent=2))


def measured(folder: Path, shape: FluxShape, rank: int) -> dict[str, object]:
    """Return the figures of one run, in the order in which the disk allows them."""
    base, other = folder / "base.safetensors", folder / "other.safetensors"
    with torch.device("meta"):
        model = Flux(shape)
    write_tensors(base, {name: noise(tuple(t.shape)) for name, t in model.state_dict().items()})
    loras = [folder / f"lora{number}.safetensors" for number in range(2)]
    for path in loras:
        write_lora(path, model, rank)
    figures: dict[str, object] = {
        "size_gb": base.stat().st_size / 1e9,
        "blocks": [shape.depth, shape.depth_single],
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    merge = [
        "merge",
        "flux",
        "--flux_model",
        str(base),
        "--save_to",
        str(other),
        "--models",
        *map(str, loras),
    ]
    figures["merge"] = compared([*merge, "--ratios", "0.8", "-0.3", "--save_precision", "bf16"], base, other)
    figures["to_folder"] = compared(["convert", str(base), str(folder / "theirs")], base, None)
    script = [str(ROOT / "sd-scripts" / "tools" / "convert_diffusers_to_flux.py")]
    back = ["--diffusers_path", str(folder / "theirs"), "--save_to", str(other)]
    figures["to_one_file"] = compared(back, base, other, script)
    return figures


def noise(shape: tuple[int, ...]) -> LazyTensor:
    """Return random bfloat16 numbers of magnitudes from 2^-7 to 2^-6, made when they are written."""

    def make() -> Tensor:
        bits = torch.randint(-(2**15), 2**15, shape, dtype=torch.int16)
        return ((bits & ~0x7F80) | 0x3C00).view(torch.bfloat16)

    return LazyTensor(torch.bfloat16, shape, make)


def write_lora(path: Path, model: Flux, rank: int) -> None:
    """Write a LoRA of every layer that is adapted by default."""
    tensors: dict[str, Tensor] = {}
    for target in denoiser_targets(model):
        if target.is_default and target.part == DENOISER:
            rows, columns = target.module.get_parameter("weight").shape
            name = f"lora_{target.name}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(rank, columns).mul_(0.02).bfloat16()
            tensors[f"{name}.lora_up.weight"] = torch.randn(rows, rank).mul_(0.02).bfloat16()
            tensors[f"{name}.alpha"] = torch.tensor(float(rank))
    write_tensors(path, tensors)


def compared(
    arguments: list[str], base: Path, result: Path | None, command: list[str] | None = None
) -> dict[str, float]:
    """Return the figures of a command, and how its time compares with copies of `base` around it.

    Its `result`, if that is given, is removed for the second copy.
    """
    copies = [copy(base)]
    figures = run(arguments, command)
    if result:
        result.unlink()
    copies.append(copy(base))
    return figures | {"copy_s": sum(copies) / 2, "ratio": figures["s"] * 2 / sum(copies)}


def forget_files() -> None:
    """Have the system drop what it remembers of files, where we may ask for that."""
    with suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="utf-8")


def copy(source: Path) -> float:
    """Return the seconds that a copy takes until it is on the disk; it is removed again."""
    target = source.with_name("copy.safetensors")
    forget_files()
    start = time.perf_counter()
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, CHUNK)
        writing.flush()
        os.fsync(writing.fileno())
    seconds = time.perf_counter() - start
    target.unlink()
    return seconds


def run(arguments: list[str], command: list[str] | None = None) -> dict[str, float]:
    """Run a command of sfumato; return its seconds and the peak of its private memory."""
    forget_files()
    start, peak = time.perf_counter(), 0
    words = [sys.executable, *(command or ["-m", "sfumato"]), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, private_bytes(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"failed: {' '.join(words)}")
    return {"s": time.perf_counter() - start, "private_gb": peak / 1e9}


def private_bytes(pid: int) -> int:
    """Return RssAnon of a process; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


if __name__ == "__main__":
    main()
