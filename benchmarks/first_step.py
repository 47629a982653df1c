"""CPU and wall seconds from the start of a process to the end of its first step, everything being cached.

The runs are those of tiny models, so that what is left is what every user waits for: imports, checks, reading
of the data set, caches and headers, building of modules, optimizer and observers. A first, untimed run fills
the caches on disk; the best of the timed ones counts.

    python benchmarks/first_step.py [--repeats 3] [--families sd sdxl flux]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

TEXTS_TOO = ("--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk")
RUNS = {
    "sd": ("train_network", ["--network_module", "networks.lora", "--cache_latents_to_disk"]),
    "sdxl": ("sdxl_train_network", ["--network_module", "networks.lora", *TEXTS_TOO]),
    "flux": ("flux_train_network", ["--network_module", "networks.lora_flux", *TEXTS_TOO]),
}
"""The script of each family, and its options."""
UNTIL_STEP = """
import os, sys, time
started = time.monotonic() - time.process_time()
from sfumato.cli.main import script
from sfumato.training.core.audience import Audience
def stop(audience, event):
    times = os.times()
    print(f"{times.user + times.system:.3f} {time.monotonic() - started:.3f}", flush=True)
    os._exit(0)
Audience.after = stop
sys.exit(script(sys.argv.pop(1)))
"""


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--families", nargs="+", choices=list(RUNS), default=list(RUNS))
    arguments = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as folder:
            figures[family] = measure(Path(folder), family, arguments.repeats)
    print(json.dumps(figures))


def measure(folder: Path, family: str, repeats: int) -> dict[str, float]:
    """Return the least CPU and the least wall seconds of the timed runs of one family."""
    from tests import tiny

    make: dict[str, Callable[[Path], tiny.TinyCheckpoint | tiny.TinyFlux]]
    make = {"sd": tiny.sd, "sdxl": tiny.sdxl, "flux": tiny.flux}
    tiny.pictures(folder / "data" / "1_cat", 8)
    options = [*make[family](folder / "model").arguments, *RUNS[family][1], *run_options(folder)]
    times = [until_step(family, options) for _ in range(repeats + 1)][1:]
    cpu_s, wall_s = map(min, zip(*times, strict=True))
    return {"cpu_s": cpu_s, "wall_s": wall_s}


def until_step(family: str, options: list[str]) -> tuple[float, float]:
    """Return the CPU and the wall seconds that a fresh process takes to the end of its first step."""
    command = [sys.executable, "-c", UNTIL_STEP, RUNS[family][0], *options]
    ended = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=ROOT, check=False)
    if ended.returncode or not ended.stdout:
        raise SystemExit(ended.stderr)
    cpu_s, wall_s = map(float, ended.stdout.split()[-2:])
    return cpu_s, wall_s


def run_options(folder: Path) -> list[str]:
    """Return the options of any of the runs: one step on 8 images."""
    return [
        *("--train_data_dir", str(folder / "data"), "--resolution", "64", "--caption_extension", ".txt"),
        *("--output_dir", str(folder / "out"), "--output_name", "x", "--logging_dir", str(folder / "logs")),
        *("--network_dim", "4", "--network_train_unet_only", "--max_data_loader_n_workers", "0"),
        *("--max_train_steps", "1", "--seed", "1", "--learning_rate", "1e-4"),
    ]


if __name__ == "__main__":
    main()
