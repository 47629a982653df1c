"""How fast cached latents come from the disk, and how long a training step waits for them.

Latents of 16 x 128 x 128 in float32, one of an image of 1024 x 1024, lie in cache files (in the system's
cache, as they are after the first epoch where they fit). `items_per_s` loads as fast as it can; `wait_share`
is the part of steps of 200 ms that the loop waits for its next batch. The step sleeps, as it does for a
graphics card. The first three batches, in which workers start, are not counted.

    python benchmarks/loading.py [--batch 1] [--files 200]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from sfumato.caching.latent_cache import LatentCache
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.data.config.plan import DatasetPlan, SubsetPlan
from sfumato.data.images.buckets import Buckets
from sfumato.models.interface.latents import CacheFormat, LatentSpace

STEP_S = 0.2
NUM_STEPS = 40
UNCOUNTED = 3
SPACE = LatentSpace(channels=16, downscale=8, scale=0.3611, shift=0.1159, patch=2)


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--files", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training_set = make(Path(folder), arguments.files, arguments.batch)
        figures = {f"workers_{number}": measure(training_set, number) for number in (0, 2)}
    print(json.dumps({"batch": arguments.batch, "files": arguments.files, **figures}))


def make(folder: Path, num_files: int, batch_size: int) -> TrainingSet:
    """Write images (their headers alone: nothing decodes them) and their caches."""
    for number in range(num_files):
        (folder / f"{number:04d}.png").write_bytes(header(1024, 1024))
        (folder / f"{number:04d}.txt").write_text(f"image {number}", "utf-8")
    plan = DatasetPlan((SubsetPlan(folder, caption_extension=".txt"),), Buckets((1024, 1024)), batch_size)
    training_set = dataset.read([plan], seed=1)
    cache = LatentCache(training_set.sets, CacheFormat("_flux.npz", "_flux_te.npz"), SPACE)
    rng = np.random.default_rng(1)
    for number in range(num_files):
        latents = rng.standard_normal((16, 128, 128), dtype=np.float32)
        framing = {"original_size_128x128": np.array([1024, 1024]), "crop_ltrb_128x128": np.zeros(4)}
        np.savez(
            cache.path(0, number), allow_pickle=False, **{cache.name(0, number, False): latents}, **framing
        )
    training_set.latents = cache
    return training_set


def header(width: int, height: int) -> bytes:
    """Return the beginning of a PNG."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + content
    return start + struct.pack(">I", zlib.crc32(content))


def measure(training_set: TrainingSet, num_workers: int) -> dict[str, float]:
    """Return images per second without a step, and the share of waiting with one."""
    loader = Loader(training_set, num_workers=num_workers, persistent=True)
    list(loader(training_set.batches(1)))  # into the system's cache; workers start
    begin = time.perf_counter()
    num_items = sum(len(batch) for batch in loader(training_set.batches(2)))
    items_per_s = num_items / (time.perf_counter() - begin)
    waits, cpu = zip(*list(waits_s(loader, training_set))[UNCOUNTED:], strict=True)
    return {
        "items_per_s": round(items_per_s),
        "wait_ms": round(1e3 * statistics.mean(waits), 2),
        "wait_median_ms": round(1e3 * statistics.median(waits), 2),
        "wait_cpu_ms": round(1e3 * statistics.mean(cpu), 2),
        "wait_share": round(statistics.mean(waits) / (STEP_S + statistics.mean(waits)), 4),
    }


def waits_s(loader: Loader, training_set: TrainingSet) -> Iterator[tuple[float, float]]:
    """Yield how long each of the first steps of an epoch waits: by the clock, and by the processor."""
    begin, begin_cpu = time.perf_counter(), time.thread_time()
    for _ in loader(training_set.batches(3)[: NUM_STEPS + UNCOUNTED]):
        yield time.perf_counter() - begin, time.thread_time() - begin_cpu
        time.sleep(STEP_S)
        begin, begin_cpu = time.perf_counter(), time.thread_time()


if __name__ == "__main__":
    main()
