"""Images decoded and prepared by threads, ahead of the model and in order; damaged ones are left out."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from sfumato.data.images import images
from sfumato.data.images.buckets import Size
from sfumato.data.images.images import BrokenImageError

_AHEAD = 4
"""Images that wait for the model, for each thread."""


@dataclass(frozen=True)
class ReadyImage:
    """One image, as the model takes it.

    Attributes:
        size: upright (width, height) of the whole image.
        fault: why it cannot be read; "" if it can.
    """

    path: Path
    size: Size = (0, 0)
    value: Any = None
    fault: str = ""


def ready(
    paths: Iterable[Path], prepared: Callable[[Image.Image, Path], Any], num_threads: int | None
) -> Iterator[ReadyImage]:
    """Yield the images in order, while threads work on those to come.

    Args:
        prepared: makes what the model takes, of an RGB image and its path.
        num_threads: one for each core where None; the caller's own where 0.
    """
    count = (os.cpu_count() or 1) if num_threads is None else num_threads
    if not count:
        yield from (_ready(path, prepared) for path in paths)
        return
    waiting: deque[Future[ReadyImage]] = deque()
    remaining = iter(paths)
    with ThreadPoolExecutor(count) as pool:
        try:
            while True:
                room = _AHEAD * count - len(waiting)
                waiting += [pool.submit(_ready, path, prepared) for path in islice(remaining, room)]
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def on_white(path: Path) -> Image.Image:
    """Return an image in RGB; what is transparent shows white, and not the colours that happen to lie below.

    Raises:
        BrokenImageError: the file is damaged.
    """
    image = images.decode(path, alpha=True)
    if image.getchannel("A").getextrema() == (255, 255):
        return image.convert("RGB")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB")


def _ready(path: Path, prepared: Callable[[Image.Image, Path], Any]) -> ReadyImage:
    try:
        image = on_white(path)
    except BrokenImageError as error:
        return ReadyImage(path, fault=str(error))
    return ReadyImage(path, image.size, prepared(image, path))
