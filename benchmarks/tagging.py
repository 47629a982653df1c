"""Images/s of the tagger on 2,000 images, or as many as are named, beside a bare loop with onnxruntime.

The model is tiny (it needs the package onnx to be made), so that what is measured is all around it.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from sfumato.cli.main import main as sfumato  # noqa: E402
from sfumato.tools.captioning.tags.tagger import square  # noqa: E402
from tests.tools.captioning import onnx_tagger  # noqa: E402

SIZE, SIDE = (640, 480), 448
TAGS = [("general", "Rating"), *((f"tag_{number}", "General") for number in range(999))]


def main(count: int) -> None:
    """Print the figures as JSON."""
    with tempfile.TemporaryDirectory() as folder:
        images, tagger = Path(folder, "images"), Path(folder, "tagger")
        write_images(images, count)
        rows = np.random.default_rng(0).random((256, len(TAGS))) ** 6
        onnx_tagger.SIDE = SIDE
        onnx_tagger.write_tagger(tagger, TAGS, rows.tolist())
        bare = bare_loop(images, tagger)
        command = ["caption", "tags", str(images), "--repo_id", str(tagger), "--batch_size", "8"]
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):
            assert sfumato(command) == 0
        ours = time.perf_counter() - start
    figures = {"images": count, "images_per_s": count / ours, "bare_loop_images_per_s": count / bare}
    print(json.dumps({name: round(value, 1) for name, value in figures.items()}))


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs of noise that is not too fine."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(count):
        small = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        small.resize(SIZE).save(folder / f"{number:04d}.jpg", quality=90)


def bare_loop(folder: Path, tagger: Path) -> float:
    """Return the seconds of decoding, preparing, running and writing, one image after the other."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(tagger / "model.onnx"))
    start = time.perf_counter()
    for path in sorted(folder.glob("*.jpg")):
        with Image.open(path) as image:
            pixels = square(image.convert("RGB"), SIDE)
        (found,) = session.run(None, {"image": pixels[None]})
        names = [name for (name, _), value in zip(TAGS, found[0], strict=True) if value >= 0.35]
        path.with_suffix(".bare").write_text(", ".join(names), "utf-8")
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
