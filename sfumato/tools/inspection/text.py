"""A report as text for a console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sfumato.log import counted
from sfumato.tools.inspection.report import Bucket, DataReport, DataSet, Lengths, Problem

_MOST_DETAILS = 5
_BAR = 30
_SIGNS = {"error": "[!]", "warning": "[?]", "note": "[i]"}


def as_text(report: DataReport) -> str:
    """Return the report: problems first, then data sets, buckets and captions."""
    return "\n".join(
        [
            _title(report),
            *_problems(report.problems),
            *(line for number, found in enumerate(report.datasets, 1) for line in _data_set(number, found)),
            *_captions(report.lengths, len(report.images)),
        ]
    )


def _title(report: DataReport) -> str:
    shown = f"{counted(report.num_trained, 'image')}, {report.num_shown} shown in an epoch"
    if report.num_validation:
        shown += f", and {report.num_validation} for validation"
    skipped = "" if report.is_complete else "; their pixels were not looked at"
    return f"{report.source}: {shown}{skipped}"


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    yield ""
    yield "Problems" if problems else "No problems found."
    for problem in problems:
        yield f"  {_SIGNS[problem.severity]} {problem.message}"
        yield from (f"        {line}" for line in problem.details[:_MOST_DETAILS])
        if len(problem.details) > _MOST_DETAILS:
            yield f"        and {len(problem.details) - _MOST_DETAILS} more"


def _data_set(number: int, found: DataSet) -> Iterator[str]:
    width, height = found.resolution
    yield ""
    purpose = " (validation)" if found.is_validation else ""
    yield (
        f"Data set {number}{purpose}: resolution {width}x{height}, batch size {found.batch_size}, "
        f"{counted(found.num_batches, 'batch', 'batches')} {found.occasion}"
    )
    for folder in found.folders:
        kind = ", regularisation" if folder.is_reg else ""
        yield f"  {folder.path}: {counted(folder.num_images, 'image')} x {folder.num_repeats}{kind}"
    yield "  bucket       images  shown  enlarged  shrunk  cropped away (mean, most)"
    most = max((bucket.num_images for bucket in found.buckets), default=1)
    yield from (_bucket(bucket, most) for bucket in found.buckets)


def _bucket(bucket: Bucket, most: int) -> str:
    width, height = bucket.size
    bar = "#" * max(1, _BAR * bucket.num_images // most)
    return (
        f"  {f'{width}x{height}':11} {bucket.num_images:9} {bucket.num_shown:6} {bucket.num_enlarged:9} "
        f"{bucket.num_shrunk:7} {bucket.mean_loss:8.1%} {bucket.most_loss:7.1%}  {bar}"
    )


def _captions(lengths: Mapping[str, Lengths], num_captions: int) -> Iterator[str]:
    if lengths:
        yield ""
        yield "Captions"
    for name, length in lengths.items():
        yield (
            f"  {name}: {length.least} to {length.most} tokens, median {length.median:g}; "
            f"{length.num_cut} of {num_captions} longer than the {length.limit} that it reads"
        )
