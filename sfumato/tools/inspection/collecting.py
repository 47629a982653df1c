"""Gather what is known of a run's data: read it as training does, and draw the first epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.tools.report import ReportConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.image_sets import ImageSet
from sfumato.data.batches.order import BatchPlan, OrderedImage
from sfumato.data.config import blueprint
from sfumato.data.sources.complaints import Complaints, printable
from sfumato.models.interface.caption_lengths import CaptionReader
from sfumato.models.registry.families import family_for
from sfumato.tools.inspection import duplicates, looking, problems
from sfumato.tools.inspection.report import ALPHA, Bucket, DataReport, DataSet, Folder, Lengths, Shown


def collect(run: Run) -> DataReport:
    """Read the data of a run, the pixels included unless they are to be skipped.

    Raises:
        UserError: there is no data, or its description is wrong.
    """
    family, config, complaints = family_for(run) if run.family else None, run[ReportConfig], Complaints()
    latents = family.latents if family else None
    multiple, seed = latents.downscale * latents.patch if latents else 8, run[LengthConfig].seed or 0
    plans = blueprint.plans(run, size_multiple=multiple, seed=seed)
    training_set = dataset.read(plans, seed, complaints=complaints)
    found = _Gathered.of(training_set)
    images = _first_epoch(found, run[LengthConfig])
    readers = family.readers() if family else {}
    _count_tokens(images, readers)
    if not config.skip_pixels:
        _look(images)
    datasets = [_data_set(found, number, images) for number in range(len(found.sets))]
    lengths = {name: _lengths(name, reader, images) for name, reader in readers.items()}
    if config.html and not config.skip_pixels:
        _make_thumbnails(found.sets, images, config.thumbnails)
    source = run[DatasetConfig].dataset_config or run[DatasetConfig].train_data_dir
    return DataReport(
        source=printable(str(source)),
        seed=training_set.seed,
        is_complete=not config.skip_pixels,
        datasets=tuple(datasets),
        lengths=lengths,
        problems=tuple(problems.find(complaints, datasets, images, lengths, config.trigger_word)),
        images=tuple(images),
    )


@dataclass(frozen=True)
class _Gathered:
    """The images to train on, and behind them those for validation.

    Attributes:
        sets: of both.
        num_trained: sets that are trained.
    """

    trained: TrainingSet
    held_back: TrainingSet | None
    sets: Sequence[ImageSet]
    num_trained: int

    @classmethod
    def of(cls, trained: TrainingSet) -> _Gathered:
        held_back = trained.validation
        return cls(
            trained, held_back, [*trained.sets, *(held_back.sets if held_back else ())], len(trained.sets)
        )


def _first_epoch(found: _Gathered, length: LengthConfig) -> list[Shown]:
    """Return each image as its first showing in the first epoch has it, by data set and index."""
    training_set = found.trained
    batches = training_set.batches(1, num_per_step=length.gradient_accumulation_steps)
    num_steps = -(-len(batches) // length.gradient_accumulation_steps)
    epochs = length.max_train_epochs
    training_set.max_steps = epochs * num_steps if epochs else length.max_train_steps
    shown = [_shown(training_set, plan, item) for plan in batches for item in plan.items if item.repeat == 0]
    if held_back := found.held_back:
        items = ((plan, item) for plan in held_back.batches(1) for item in plan.items)
        shown += [_shown(held_back, plan, item, behind=found.num_trained) for plan, item in items]
    return sorted(shown, key=lambda image: (image.dataset, image.index))


def _shown(training_set: TrainingSet, plan: BatchPlan, item: OrderedImage, *, behind: int = 0) -> Shown:
    """Return how an image is shown.

    Args:
        behind: data sets that come before those of `training_set`, if its images are for validation.
    """
    images = training_set.sets[plan.dataset]
    image, caption, view = training_set.showing(plan, item)
    mask = images.mask(item.image)
    return Shown(
        path=image.path,
        dataset=plan.dataset + behind,
        index=item.image,
        size=image.size,
        resized=view.framing.resized,
        bucket=view.framing.size,
        corner=view.framing.corner,
        is_flipped=view.flipped,
        num_repeats=image.num_repeats,
        is_reg=images.subset(item.image).is_reg,
        caption=caption,
        mask="" if mask is None else mask.path or ALPHA,
        is_validation=behind > 0,
    )


def _count_tokens(images: Sequence[Shown], readers: Mapping[str, CaptionReader]) -> None:
    captions = [shown.caption for shown in images]
    for name, reader in readers.items():
        for shown, count in zip(images, reader.count(captions), strict=True):
            shown.tokens[name] = count
    if readers:
        widest = max(readers.values(), key=lambda reader: reader.length)
        for shown in images:
            if all(shown.tokens[name] > reader.length for name, reader in readers.items()):
                shown.cut_off = widest.cut_off(shown.caption)


def _look(images: Sequence[Shown]) -> None:
    """Decode every file once, although several data sets may show it, and note what looks alike."""
    paths = list(dict.fromkeys(shown.path for shown in images))
    seen = dict(zip(paths, looking.look_at(paths), strict=True))
    whole = [(path, found.likeness) for path, found in seen.items() if found.likeness is not None]
    groups = duplicates.groups([likeness for _, likeness in whole])
    alike = {
        whole[one][0]: (whole[group[at - 1]][0], number)
        for number, group in enumerate(groups, 1)
        for at, one in enumerate(group)
    }
    for shown in images:
        found = seen[shown.path]
        shown.fault, shown.bars, shown.sharpness = found.fault, found.bars, found.sharpness
        shown.alike, shown.group = alike.get(shown.path, ("", 0))


def _data_set(found: _Gathered, number: int, images: Sequence[Shown]) -> DataSet:
    images_of = found.sets[number]
    own = [shown for shown in images if shown.dataset == number]
    by_size: dict[tuple[int, int], list[Shown]] = {}
    for shown in own:
        by_size.setdefault(shown.bucket, []).append(shown)
    plan = images_of.plan
    subsets = [*images_of.images.subsets]
    return DataSet(
        resolution=plan.buckets.resolution,
        has_buckets=plan.buckets.enabled,
        batch_size=plan.batch_size,
        num_batches=sum(-(-len(items) // plan.batch_size) for items in images_of.buckets.values()),
        folders=tuple(
            Folder(printable(str(subset.source)), subsets.count(index), subset.num_repeats, subset.is_reg)
            for index, subset in enumerate(plan.subsets)
        ),
        buckets=tuple(Bucket.of(size, members) for size, members in sorted(by_size.items())),
        is_validation=number >= found.num_trained,
    )


def _lengths(name: str, reader: CaptionReader, images: Sequence[Shown]) -> Lengths:
    counts = [shown.tokens[name] for shown in images]
    num_cut = sum(count > reader.length for count in counts)
    return Lengths(reader.length, min(counts), median(counts), max(counts), num_cut)


def _make_thumbnails(sets: Sequence[ImageSet], images: Sequence[Shown], most: int) -> None:
    for shown in _chosen(images, most):
        shown.thumbnail = looking.thumbnail(shown.path)
        source = sets[shown.dataset].mask(shown.index)
        if source is not None:
            shown.mask_thumbnail = looking.mask_thumbnail(shown.path, source)


def _chosen(images: Sequence[Shown], most: int) -> Iterator[Shown]:
    """Choose whole images: those with marks first, then some evenly from all buckets."""
    whole = [shown for shown in images if not shown.fault]
    marked = [shown for shown in whole if problems.marks(shown)]
    rest = sorted((s for s in whole if not problems.marks(s)), key=lambda s: (s.dataset, s.bucket, s.path))
    yield from marked[:most]
    room = min(max(most - len(marked), 0), len(rest))
    yield from (rest[at * len(rest) // room] for at in range(room))
