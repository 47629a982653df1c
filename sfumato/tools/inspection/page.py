"""A report as one page for a browser, which holds its images and needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path, PurePath

from sfumato.console import printable
from sfumato.log import plural
from sfumato.tools.inspection.problems import marks
from sfumato.tools.inspection.report import Bucket, DataReport, DataSet, Lengths, Problem, Shown

_FEW_DETAILS = 3
_NUM_BINS = 32


def as_html(report: DataReport) -> str:
    """Return the page: problems first, then buckets, caption lengths and single images."""
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(report.source)}</title>",
            f"<style>{Path(__file__).with_name('page.css').read_text('utf-8')}</style></head><body><main>",
            *_head(report),
            *_problems(report.problems),
            "<h2>Buckets</h2>",
            *(_data_set(number, found) for number, found in enumerate(report.datasets, 1)),
            *_lengths(report),
            *_cards(report),
            "</main></body></html>\n",
        ]
    )


def _head(report: DataReport) -> Iterable[str]:
    yield "<h1>What the model will see</h1>"
    yield f'<p class="path faint">{escape(report.source)}</p>'
    tiles = {
        "images": report.num_trained,
        "shown in an epoch": report.num_shown,
        "batches an epoch": sum(found.num_batches for found in report.datasets if not found.is_validation),
        **({"validation": report.num_validation} if report.num_validation else {}),
        "buckets": sum(len(found.buckets) for found in report.datasets),
        "problems": report.num_serious,
    }
    inside = "".join(f'<div class="tile"><b>{value:,}</b>{name}</div>' for name, value in tiles.items())
    yield f'<div class="tiles">{inside}</div>'


def _problems(problems: Sequence[Problem]) -> Iterable[str]:
    yield "<h2>Problems</h2>"
    if not problems:
        yield '<p class="panel">None found.</p>'
    for problem in problems:
        lines = [f"<li>{escape(line)}</li>" for line in problem.details]
        few, more = "".join(lines[:_FEW_DETAILS]), "".join(lines[_FEW_DETAILS:])
        num_more = len(lines) - _FEW_DETAILS
        yield (
            f'<div class="problem {problem.severity}"><b>{escape(problem.kind)}</b>'
            f"<p>{escape(problem.message)}</p>"
        )
        yield f"<ul>{few}</ul>" if few else ""
        yield f"<details><summary>{num_more:,} more</summary><ul>{more}</ul></details>" if more else ""
        yield "</div>"


def _data_set(number: int, found: DataSet) -> str:
    width, height = found.resolution
    folders = "".join(
        f'<p class="faint"><span class="path">{escape(folder.path)}</span>: {folder.num_images:,} '
        f"{plural(folder.num_images, 'image')} &times; {folder.num_repeats}"
        f"{', regularisation' if folder.is_reg else ''}</p>"
        for folder in found.folders
    )
    most = max((bucket.num_images for bucket in found.buckets), default=1)
    rows = "".join(_bucket(bucket, most) for bucket in found.buckets)
    names = "images", "shown", "enlarged", "shrunk", "cropped, mean", "most"
    purpose = " (validation)" if found.is_validation else ""
    title = f"Data set {number}{purpose}: {width} &times; {height}, batches of {found.batch_size}"
    return (
        f'<div class="panel"><h3>{title}</h3>{folders}<div class="scroll"><table><tr><th>size</th>'
        f"{''.join(f'<th>{name}</th>' for name in names)}<th></th></tr>{rows}</table></div></div>"
    )


def _bucket(bucket: Bucket, most: int) -> str:
    (width, height), scale = bucket.size, 20 / max(bucket.size[0] / 1.5, bucket.size[1])
    wide, high = width * scale - 2, height * scale - 2
    shape = (
        f'<svg class="shape" viewBox="0 0 30 20"><rect x="{15 - wide / 2:.1f}" y="{10 - high / 2:.1f}" '
        f'width="{wide:.1f}" height="{high:.1f}"/></svg>'
    )
    values = (
        f"{bucket.num_images:,}",
        f"{bucket.num_shown:,}",
        f"{bucket.num_enlarged:,}",
        f"{bucket.num_shrunk:,}",
        f"{bucket.mean_loss:.1%}",
        f"{bucket.most_loss:.1%}",
    )
    return (
        f"<tr><td>{shape}{width} &times; {height}</td>{''.join(f'<td>{value}</td>' for value in values)}"
        f'<td class="bar"><i style="width:{bucket.num_images / most:.1%}"></i></td></tr>'
    )


def _lengths(report: DataReport) -> Iterable[str]:
    if report.lengths:
        yield '<h2>Captions</h2><div class="lengths">'
        for name, length in report.lengths.items():
            yield _histogram(name, length, [shown.tokens[name] for shown in report.images])
        yield "</div>"


def _histogram(name: str, length: Lengths, counts: Sequence[int]) -> str:
    """Draw how many captions have how many tokens; what is cut off stands behind the line."""
    width = max(1, -(-(max(length.most, length.limit) + 1) // _NUM_BINS))
    bins = [0] * _NUM_BINS
    for count in counts:
        bins[count // width] += 1
    kinds = ["over" if at * width > length.limit else "read" for at in range(_NUM_BINS)]
    bars = "".join(
        f'<i class="{kind}" style="height:{num / max(bins):.1%}"></i>'
        for kind, num in zip(kinds, bins, strict=True)
    )
    end = width * _NUM_BINS
    return (
        f'<div class="panel"><h3>{escape(name)}</h3><p class="faint">{length.least} to {length.most} tokens, '
        f"median {length.median:g}; {length.num_cut:,} of {len(counts):,} longer than the {length.limit} "
        f'that it reads</p><div class="bins">{bars}<u style="left:{length.limit / end:.1%}"></u></div>'
        f'<div class="axis"><span>0</span><span>{end} tokens</span></div></div>'
    )


def _cards(report: DataReport) -> Iterable[str]:
    shown = [image for image in report.images if image.thumbnail or image.fault]
    marked = [image for image in shown if marks(image)]
    if shown:
        legend = "In the frame: what is left after cropping. Striped: what masks leave out."
        yield f'<p class="faint legend">{legend}</p>'
    for title, images in (
        ("Images that need a look", marked),
        ("Other images", [image for image in shown if not marks(image)]),
    ):
        if images:
            yield f'<h2>{title}</h2><div class="cards">'
            yield from map(_card, images)
            yield "</div>"
    if shown and len(shown) < len(report.images):
        yield f'<p class="faint">{len(shown):,} of {len(report.images):,} images are shown.</p>'


def _card(shown: Shown) -> str:
    bad = "".join(f'<span class="bad">{escape(mark)}</span>' for mark in marks(shown))
    plain = [f"{shown.num_repeats} times an epoch"] if shown.num_repeats != 1 else []
    plain += ["mirrored"] if shown.is_flipped else []
    plain += ["regularisation"] if shown.is_reg else []
    plain += ["validation"] if shown.is_validation else []
    plain += [f"{name}: {count}" for name, count in shown.tokens.items()]
    crop = f", crop {shown.loss:.0%}" if shown.loss >= 0.005 else ""
    (width, height), (new_width, new_height) = shown.size, shown.bucket
    return (
        f'<article class="card"><div class="stage">{_frame(shown)}</div><div class="body">'
        f'<div class="path" title="{escape(printable(shown.path))}">{escape(_name(shown))}</div>'
        f'<div class="meta">{width} &times; {height} &rarr; {new_width} &times; {new_height}{crop}</div>'
        f'<div class="marks">{bad}'
        f"{''.join(f'<span>{escape(text)}</span>' for text in plain)}</div>"
        f'<p class="caption">{_caption(shown)}</p></div></article>'
    )


def _frame(shown: Shown) -> str:
    if not shown.thumbnail:
        return f'<span class="missing">{escape(shown.fault)}</span>'
    width, height = shown.resized
    left, top = shown.corner[0] / width, shown.corner[1] / height
    crop = (
        f"left:{left:.2%};top:{top:.2%};width:{shown.bucket[0] / width:.2%};"
        f"height:{shown.bucket[1] / height:.2%}"
    )
    mask = f'<img src="{shown.mask_thumbnail}" alt="not counted">' if shown.mask_thumbnail else ""
    return (
        f'<div class="frame{" flipped" if shown.is_flipped else ""}" '
        f'style="--w:{shown.size[0]};--h:{shown.size[1]}">'
        f'<img src="{shown.thumbnail}" alt="{escape(_name(shown))}">{mask}'
        f'<div class="crop" style="{crop}"></div></div>'
    )


def _caption(shown: Shown) -> str:
    if not shown.caption.strip():
        return '<span class="faint">without a caption</span>'
    read = shown.caption.removesuffix(shown.cut_off)
    return escape(printable(read)) + (f"<s>{escape(printable(shown.cut_off))}</s>" if shown.cut_off else "")


def _name(shown: Shown) -> str:
    return printable(PurePath(shown.path).name)
