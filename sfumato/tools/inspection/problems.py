"""What is wrong with a data set, each with a remedy; an image's own marks come from the same rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from statistics import median

from sfumato.data.captions.captions import tags
from sfumato.data.sources.complaints import Complaint, Complaints, printable
from sfumato.log import counted, plural
from sfumato.tools.inspection.report import DataSet, Lengths, Problem, Severity, Shown

MUCH_ENLARGED = 1.25
"""An image that is enlarged more than this looks soft."""

MUCH_CROPPED = 0.2
"""An image that loses more of its area than this may lose what its caption speaks of."""


_FEW_ALIKE = 4
_MUCH_BLURRED = 0.05
"""Share of the usual sharpness of a data set below which an image is out of focus, or was enlarged before."""
_FEW_IMAGES = 5
"""Images up to which nothing is usual, and a tag that all have says nothing."""


def marks(shown: Shown) -> list[str]:
    """Return in a few words each what is wrong with one image."""
    return [
        *(["damaged"] if shown.fault else []),
        *([f"enlarged {shown.scale:.1f}x"] if shown.scale > MUCH_ENLARGED else []),
        *([f"loses {shown.loss:.0%}"] if shown.loss > MUCH_CROPPED else []),
        *(["caption cut off"] if shown.cut_off else []),
        *([f"bars take {shown.bars:.0%}"] if shown.bars else []),
        *([] if shown.caption.strip() else ["no caption"]),
        *([f"looks like {_name(shown.alike)}"] if shown.alike else []),
    ]


def find(
    complaints: Complaints,
    datasets: Sequence[DataSet],
    images: Sequence[Shown],
    lengths: Mapping[str, Lengths],
    trigger_word: str = "",
) -> list[Problem]:
    """Return everything that is wrong or worth knowing, the worst first.

    Args:
        trigger_word: that each caption is to have; "" is none.
    """
    found = [
        _left_out(complaints.broken),
        _damaged(images),
        *_said(complaints.warnings, "warning"),
        _enlarged(images),
        _cropped(images, datasets),
        _barred(images),
        _blurred(images),
        _without_trigger(images, trigger_word),
        _cut_off(images, lengths),
        _alike(images),
        _everywhere(images, trigger_word),
        *_said(complaints.notes, "note"),
        *_read_in_part(images, lengths),
        *_small_buckets(datasets),
    ]
    return [problem for problem in found if problem is not None]


def _left_out(broken: Sequence[tuple[str, str]]) -> Problem | None:
    lines = tuple(printable(f"{path}: {reason}") for path, reason in broken)
    message = f"{_images(lines)} cannot be used and will be left out; mend or remove"
    return _problem("left out", "error", f"{message} {_it(lines)}", lines)


def _damaged(images: Sequence[Shown]) -> Problem | None:
    lines = tuple(printable(f"{shown.path}: {shown.fault}") for shown in images if shown.fault)
    message = f"{_images(lines)} will be replaced by others while training, being damaged; mend or remove"
    return _problem("damaged", "error", f"{message} {_it(lines)}", lines)


def _said(complaints: Iterable[Complaint], severity: Severity) -> list[Problem]:
    return [
        Problem(found.kind, severity, found.message, tuple(map(printable, found.files)))
        for found in complaints
    ]


def _enlarged(images: Sequence[Shown]) -> Problem | None:
    much = sorted((s for s in images if s.scale > MUCH_ENLARGED), key=lambda s: -s.scale)
    lines = tuple(f"{printable(s.path)}: {_size(s.size)}, enlarged {s.scale:.1f} times" for s in much)
    message = f"{_images(lines)} will be enlarged more than {MUCH_ENLARGED} times and look soft; use larger "
    return _problem("enlarged", "warning", f"{message}ones, a lower resolution or bucket_no_upscale", lines)


def _cropped(images: Sequence[Shown], datasets: Sequence[DataSet]) -> Problem | None:
    much = sorted((s for s in images if s.loss > MUCH_CROPPED), key=lambda s: -s.loss)
    lines = tuple(f"{printable(s.path)}: {_size(s.size)}, loses {s.loss:.0%}" for s in much)
    without = any(not datasets[s.dataset].has_buckets for s in much)
    remedy = (
        "turn on enable_bucket" if without else "crop by hand, or widen min_bucket_reso and max_bucket_reso"
    )
    message = f"{_images(lines)} will lose more than {MUCH_CROPPED:.0%} of the area to cropping; {remedy}"
    return _problem("cropped", "warning", message, lines)


def _barred(images: Sequence[Shown]) -> Problem | None:
    barred = [s for s in images if s.bars]
    lines = tuple(f"{printable(s.path)}: bars take {s.bars:.0%}" for s in barred)
    number = counted(len(lines), "image has", "images have")
    message = f"{number} bars of one colour at the borders, which will be learned; cut them off"
    return _problem("bars", "warning", message, lines)


def _blurred(images: Sequence[Shown]) -> Problem | None:
    seen = [s.sharpness for s in images if s.sharpness]
    if len(seen) <= _FEW_IMAGES:
        return None
    usual = median(seen)
    limit = _MUCH_BLURRED * usual
    blurred = sorted((s for s in images if 0 < s.sharpness < limit), key=lambda s: s.sharpness)
    lines = tuple(f"{printable(s.path)}: {s.sharpness / usual:.1%} of the usual sharpness" for s in blurred)
    number = counted(len(lines), "image is", "images are")
    message = f"{number} much less sharp than the others, which will be learned; look at {_it(lines)}"
    return _problem("blurred", "warning", message, lines)


def _without_trigger(images: Sequence[Shown], word: str) -> Problem | None:
    missing = [s for s in images if word and not s.is_reg and word.lower() not in s.caption.lower()]
    lines = tuple(printable(s.path) for s in missing)
    number = counted(len(lines), "caption lacks", "captions lack")
    message = f"{number} the word {word!r}; add it to {_it(lines)}"
    return _problem("no trigger word", "warning", message, lines)


def _everywhere(images: Sequence[Shown], word: str) -> Problem | None:
    """Name the tags of all captions: what each image is said to have is learned as part of everything."""
    captions = [set(tags(s.caption)) for s in images if not s.is_reg and s.caption.strip()]
    if len(captions) <= _FEW_IMAGES:
        return None
    common = sorted(set.intersection(*captions) - {word.lower()})
    number = counted(len(common), "tag is", "tags are")
    message = f"{number} in every caption, and will mean all that images share; keep trigger words alone"
    return _problem("in every caption", "note", message, tuple(map(printable, common)))


def _cut_off(images: Sequence[Shown], lengths: Mapping[str, Lengths]) -> Problem | None:
    cut = [s for s in images if s.cut_off]
    lines = tuple(
        printable(f"{s.path}: {max(s.tokens.values())} tokens, unread: {_start(s.cut_off)}") for s in cut
    )
    limit = max((length.limit for length in lengths.values()), default=0)
    number = counted(len(lines), "caption is", "captions are")
    message = f"{number} longer than the {limit} tokens that are read"
    return _problem("cut off", "warning", f"{message}; shorten {_it(lines)}, or have more tokens read", lines)


def _alike(images: Sequence[Shown]) -> Problem | None:
    groups: dict[int, dict[str, None]] = {}
    for shown in images:
        if shown.group:
            groups.setdefault(shown.group, {})[shown.path] = None
    lines = tuple(_equation(list(group)) for group in groups.values())
    number = counted(len(lines), "group of images looks", "groups of images look")
    message = f"{number} alike, and each image counts as often as it is there; keep one of each"
    return _problem("look alike", "warning", message, lines)


def _equation(paths: Sequence[str]) -> str:
    more = len(paths) - _FEW_ALIKE
    return printable(" = ".join(paths[:_FEW_ALIKE])) + (f" and {more} more" if more > 0 else "")


def _read_in_part(images: Sequence[Shown], lengths: Mapping[str, Lengths]) -> list[Problem]:
    """Say which captions one text encoder reads a part of, and another all."""
    found = []
    for name, length in lengths.items():
        longer = [s for s in images if s.tokens[name] > length.limit and not s.cut_off]
        lines = tuple(f"{printable(s.path)}: {s.tokens[name]} tokens" for s in longer)
        number = counted(len(lines), "caption is", "captions are")
        message = f"{number} longer than the {length.limit} tokens that {name} reads"
        found += [
            _problem("read in part", "note", f"{message}; another text encoder reads {_it(lines)}", lines)
        ]
    return [problem for problem in found if problem is not None]


def _small_buckets(datasets: Sequence[DataSet]) -> list[Problem]:
    found = []
    for dataset in (found for found in datasets if not found.is_validation):
        small = [b for b in dataset.buckets if b.num_shown < dataset.batch_size]
        lines = tuple(f"{_size(b.size)}: {b.num_shown} in an epoch" for b in small)
        message = (
            f"{counted(len(lines), 'bucket holds', 'buckets hold')} less than a batch of "
            f"{dataset.batch_size}; more repeats, or a larger "
        )
        found += [
            _problem("small buckets", "note", f"{message}bucket_reso_steps, make fuller batches", lines)
        ]
    return [problem for problem in found if problem is not None]


def _problem(kind: str, severity: Severity, message: str, lines: tuple[str, ...]) -> Problem | None:
    return Problem(kind, severity, message, lines) if lines else None


def _images(lines: Sequence[str]) -> str:
    return counted(len(lines), "image")


def _it(lines: Sequence[str]) -> str:
    return plural(len(lines), "it", "them")


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _start(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def _name(path: str) -> str:
    return printable(PurePath(path).name)
