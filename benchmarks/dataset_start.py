"""How long a large data set takes at the start of a run, and how much memory, each in a fresh process.

Ten folders of tiny valid images and captions are made. `first` reads them as a run does: description,
names, headers, captions, buckets, the first epoch's plan; it leaves an index. `cached` does the same with
index and complete caches, and decides for every cache file of latents and of captions whether it is valid.
Cache files are filled by the program itself, with a family that computes next to nothing. Starting Python and
importing torch is not counted. Files are in the system's cache. Seconds are those of the clock and of the
processor: they differ where other programs run beside.

    python benchmarks/dataset_start.py [--images 100000] [--folder /tmp]
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from sfumato.caching.latents import fill_latents
from sfumato.caching.texts import fill_texts
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.config import blueprint
from tests.caching.fake import family

FOLDERS = 10
WORDS = ("a photo of", "cat", "sitting", "red", "sofa", "window", "light", "close-up", "outdoors", "night")


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--folder", default=tempfile.gettempdir(), help="where the files are made")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part](Path(arguments.folder))))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        make(Path(name), arguments.images)
        figures = {
            part: fresh(part, name) for part in ("first", "restart", "fill", "unindexed", "cached", "memory")
        }
    print(json.dumps({"images": arguments.images, **figures}, indent=1))


def fresh(part: str, folder: str) -> object:
    """Return what one part prints in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--folder", folder]
    done = subprocess.run(command, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def make(root: Path, num_images: int) -> None:
    """Write the description, images of 400 sizes, and captions of about 60 characters."""
    rng, images = random.Random(1), []
    root.mkdir(exist_ok=True)
    for _ in range(400):
        data = io.BytesIO()
        Image.new("RGB", (rng.randint(40, 140), rng.randint(40, 140)), (9, 99, 200)).save(data, "PNG")
        images.append(data.getvalue())
    for number in range(num_images):
        folder = root / f"{number % FOLDERS}_things"
        if number < FOLDERS:
            folder.mkdir()
        (folder / f"picture_{number:06d}.png").write_bytes(rng.choice(images))
        (folder / f"picture_{number:06d}.txt").write_text(
            f"{number}, {', '.join(rng.sample(WORDS, 8))}\n", "utf-8"
        )
    subsets = "".join(f"[[datasets.subsets]]\nimage_dir = '{f}'\n" for f in sorted(root.iterdir()))
    (root / "data.toml").write_text(
        "[general]\nresolution = 64\nenable_bucket = true\nmin_bucket_reso = 32\nmax_bucket_reso = 128\n"
        f"bucket_reso_steps = 16\ncaption_extension = '.txt'\n[[datasets]]\nbatch_size = 1\n{subsets}",
        "utf-8",
    )


def read(root: Path) -> TrainingSet:
    """Read the data set and plan its first epoch, as a run does."""
    config = DatasetConfig(dataset_config=root / "data.toml")
    run = Run("flux_train_network", "flux", [config, CaptionConfig(), ImageConfig(), LossConfig()])
    plans = blueprint.plans(run)
    training_set = dataset.read(plans, seed=1)
    assert len(training_set.batches(1)) == training_set.num_batches
    return training_set


def fill(root: Path, training_set: TrainingSet) -> None:
    """Fill both caches on disk, as a run does; nothing is computed where they are complete."""
    _, as_family, parts = family(root)
    fill_latents(training_set, as_family, parts, to_disk=True, batch_size=4)
    fill_texts(training_set, as_family, parts, ("clip", "t5"), to_disk=True, batch_size=16)


def first(root: Path) -> object:
    """Time the reading alone; the first of them makes the index."""
    return timed(lambda: read(root))


def make_caches(root: Path) -> object:
    """Fill the caches; then drop the index, as if they came from elsewhere."""
    times = timed(lambda: fill(root, read(root)))
    for index in root.glob("*/.sfumato-index.sqlite"):
        index.unlink()
    return times


def cached(root: Path) -> object:
    """Time the whole start, and count the cache files that it opens."""
    opened = []
    sys.addaudithook(
        lambda event, about: event == "open" and str(about[0])[-4:] == ".npz" and opened.append(1)
    )
    return {**timed(lambda: fill(root, read(root))), "cache_files_opened": len(opened)}


def memory(root: Path) -> object:
    """Return the bytes that an image takes in this process, and more in a worker that has seen them all."""
    make(root / "few", 20)  # what the first image brings, libraries above all, counts for none
    fill(root / "few", read(root / "few"))
    gc.collect()
    before = rss_bytes()
    training_set = read(root)
    plans = training_set.batches(1)
    fill(root, training_set)
    gc.collect()
    num_images = sum(len(images.images) for images in training_set.sets)
    here = (rss_bytes() - before) / num_images

    def look() -> None:
        for plan in plans:
            for item in plan.items:
                images = training_set.sets[plan.dataset]
                assert images.images[item.image].caption
                assert images.fit(item.image)

    return {
        "bytes_per_image": round(here),
        "worker_bytes_per_image": round(in_worker(look) / num_images),
    }


def in_worker(work: Callable[[], None]) -> int:
    """Return how many bytes of its own a forked process gets by some work."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        before = private_bytes()
        work()
        os.write(writer, str(private_bytes() - before).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 100))


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    return 1024 * smaps()["Rss"]


def private_bytes() -> int:
    """Return the memory that this process shares with none."""
    return 1024 * smaps()["Private_Dirty"]


def smaps() -> dict[str, int]:
    """Return the kernel's account of this process's memory, in KiB."""
    lines = [
        line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    ]
    return {line[0].rstrip(":"): int(line[1]) for line in lines}


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds that some work takes, of the clock and of the processor."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_s = time.perf_counter() - begin, time.process_time() - begin_cpu
    return {"seconds": round(seconds, 2), "cpu_s": round(cpu_s, 2)}


PARTS: dict[str, Callable[[Path], object]] = {
    "first": first,
    "restart": first,
    "fill": make_caches,
    "unindexed": cached,
    "cached": cached,
    "memory": memory,
}

if __name__ == "__main__":
    main()
