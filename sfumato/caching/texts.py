"""Outputs of text encoders, computed once instead of in every step: in memory or in files by the images."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import tee
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfumato import log
from sfumato.caching import store, text_file
from sfumato.caching.latent_cache import is_mine
from sfumato.caching.memory import MemoryStore
from sfumato.caching.records import SHAPES, made_again, texts_differ
from sfumato.caching.store import Arrays, BrokenCacheError, Record, Shapes
from sfumato.checkpoints.write_behind import behind
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.image_sets import ImageSet
from sfumato.data.captions import captions, variants
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.images.images import stem
from sfumato.data.sources.index import Index, Status
from sfumato.errors import UserError
from sfumato.log import counted, plural
from sfumato.models.interface.family import Family
from sfumato.models.interface.parts import Parts

_KIND = "texts"
_ADOPTED = "adopted "
_NO_CHOICE = Random(0)  # nothing is drawn for captions that do not vary

logger = logging.getLogger(__name__)


class WantedTexts(NamedTuple):
    """The file with the outputs for the caption of an image, (data set, index)."""

    image: tuple[int, int]
    file: str
    caption: str


@dataclass
class TextCache:
    """Where cached outputs lie; a `TextSource` of the training set.

    Attributes:
        suffix: what the names of the family's cache files end in.
        names: outputs to load.
        memory: outputs by (caption, name), or None where they are on disk.
        joined: outputs that files hold as one.
    """

    sets: Sequence[ImageSet]
    suffix: str
    names: tuple[str, ...]
    memory: MemoryStore | None = None
    joined: text_file.Joined = ()

    def __call__(self, dataset: int, image: int, caption: str) -> dict[str, Tensor]:
        """Return each output for an image's caption as trained, without the batch dimension."""
        if self.memory is not None:
            return {name: self.memory[caption, name] for name in self.names}
        path = self.path(dataset, image)
        try:
            arrays = text_file.read(path, self.names, self.joined)
            found = {name: store.as_tensor(name, array) for name, array in arrays.items()}
        except BrokenCacheError as error:
            raise UserError(f"{path} is damaged ({error}); delete it and start again") from error
        for name in self.names:
            if name not in found:
                raise UserError(f"{path} has no {name}; start again without --skip_cache_check")
        return found

    def path(self, dataset: int, image: int) -> Path:
        """Return the cache file of an image's caption: `<base><suffix>`."""
        return Path(stem(self.sets[dataset].images.paths[image]) + self.suffix)

    def all_captions(self) -> Iterator[str]:
        """Yield every caption that an image may be trained with."""
        for image_set in self.sets:
            settings, table = [subset.captions for subset in image_set.plan.subsets], image_set.images
            for caption, subset in zip(table.captions, table.subsets, strict=True):
                yield from variants.listed(caption, settings[subset]) or ()

    def wanted(self) -> Iterator[WantedTexts]:
        """Yield the file that there should be for each image, with the caption."""
        for dataset, image_set in enumerate(self.sets):
            settings, table = [subset.captions for subset in image_set.plan.subsets], image_set.images
            rows = zip(table.paths, table.captions, table.subsets, strict=True)
            for index, (path, caption, subset) in enumerate(rows):
                caption = _trained(caption, settings[subset])
                yield WantedTexts((dataset, index), stem(path) + self.suffix, caption)


def fill_texts(
    training_set: TrainingSet,
    family: Family,
    parts: Parts,
    encoders: Sequence[str],
    *,
    batch_size: int = 1,
    to_disk: bool = False,
    trust: bool = False,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> TextCache:
    """Encode every caption that has no valid outputs yet, and let the training set load them.

    No encoder is loaded if nothing is missing.

    Args:
        encoders: names of the text encoders whose outputs are cached; the others stay live.
        batch_size: captions encoded together.
        to_disk, trust, rank, world, wait: as for `fill_latents`.

    Raises:
        UserError: captions vary in more ways than can be kept, or one file would have to hold two.
    """
    require_cacheable_captions(training_set, to_disk=to_disk)
    names = tuple(name for encoder in encoders for name in family.text_outputs[encoder])
    memory, stored = None if to_disk else MemoryStore(), family.caches
    cache = TextCache(training_set.sets, stored.texts, names, memory, stored.joined)
    encoder = _Encoder(cache, family, parts, tuple(encoders), training_set.index, trust)
    if to_disk and training_set.has_shared_stems:
        _require_one_caption_per_file(cache)
    try:
        # In memory: the different captions, in order.
        todo = encoder.missing(rank, world) if to_disk else {caption: [] for caption in cache.all_captions()}
        if todo:
            _encode_all(encoder, todo, batch_size)
    finally:
        training_set.index.save()
    if cache.memory is not None:
        cache.memory.pack()
    wait()
    training_set.texts = cache
    return cache


def require_cacheable_captions(training_set: TrainingSet, *, to_disk: bool) -> None:
    """Raise UserError if captions vary, so that they cannot all be encoded once.

    In memory each caption that an image may have is kept, if they are not too many; a file holds one.
    """
    for image_set in training_set.sets:
        for subset in image_set.plan.subsets:
            endless = variants.endless(subset.captions)
            if varying := subset.captions.varying() if to_disk else endless:
                memory = (
                    "" if endless else ", keep them in memory (without --cache_text_encoder_outputs_to_disk)"
                )
                raise UserError(
                    f"text encoder outputs cannot be cached: {' and '.join(varying)} "
                    f"{plural(len(varying), 'makes', 'make')} the captions of {subset.source} vary; "
                    f"switch that off{memory}, or leave out --cache_text_encoder_outputs"
                )
        if not to_disk:
            _require_few_variants(image_set)


def _require_few_variants(image_set: ImageSet) -> None:
    table = image_set.images
    for path, caption, subset in zip(table.paths, table.captions, table.subsets, strict=True):
        settings = image_set.plan.subsets[subset].captions
        if settings.enable_wildcard and variants.listed(caption, settings) is None:
            raise UserError(
                f"text encoder outputs cannot be cached: enable_wildcard makes more than {variants.MOST} "
                f"captions of that of {path}; shorten it, or leave out --cache_text_encoder_outputs"
            )


def _trained(caption: str, settings: CaptionSettings) -> str:
    return captions.process(caption, settings, _NO_CHOICE, epoch=1)


def _require_one_caption_per_file(cache: TextCache) -> None:
    """Raise UserError if images of the same name, but for the suffix, have different captions."""
    owner: dict[str, str] = {}
    for _, file, caption in cache.wanted():
        if owner.setdefault(file, caption) != caption:
            raise UserError(f"{file} cannot hold two captions; cache in memory, or use one everywhere")


def _encode_all(encoder: _Encoder, todo: Mapping[str, Sequence[str]], batch_size: int) -> None:
    texts = list(todo)

    def keep(made: Mapping[str, Mapping[str, Tensor]]) -> None:
        for caption, outputs in made.items():
            encoder.keep(caption, outputs, todo[caption])

    with (
        log.progress(total=len(texts), unit="caption", title="encoding captions") as bar,
        behind(keep) as keep_behind,  # files are written while the next captions are encoded
    ):
        for at in range(0, len(texts), batch_size):
            batch = texts[at : at + batch_size]
            keep_behind(dict(zip(batch, encoder.encode(batch), strict=True)))
            bar.update(len(batch))


@dataclass
class _Encoder:
    """Turns captions into outputs, puts them where they belong, and tells which are there already."""

    cache: TextCache
    family: Family
    parts: Parts
    encoders: tuple[str, ...]
    index: Index
    trust: bool
    unfit: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._extras = self.family.cache_extras()
        self._adopts = self.family.caches.adopts_texts

    def missing(self, rank: int, world: int) -> dict[str, list[str]]:
        """Return captions of this process's share, with the files that have to be written for each."""
        found: dict[str, list[str]] = {}
        num_adopted = 0
        share = self.cache.wanted()
        if world > 1:
            share = (wanted for wanted in share if is_mine(wanted.file, rank, world))
        share, asked = tee(share)
        recalled = self.index.recall_all((_KIND, wanted.file) for wanted in asked)
        for wanted, (status, known) in zip(share, recalled, strict=True):
            is_valid, is_adopted = self._check(wanted, status, known)
            num_adopted += is_adopted
            if not is_valid and wanted.file not in found.get(wanted.caption, ()):
                found.setdefault(wanted.caption, []).append(wanted.file)
        if num_adopted:
            logger.info(
                "%s without a record (sd-scripts writes none), newer than the caption and of the right "
                "shapes: used; delete what comes from another text encoder",
                counted(num_adopted, "text cache"),
            )
        if self.unfit:
            logger.info(made_again(self.unfit, "text cache"))
        return found

    def encode(self, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Return the outputs of each caption, on the CPU."""
        tokens = {k: v.to(self.parts.device) for k, v in self.family.tokenize(texts).items()}
        modules = {name: self.parts[name] for name in self.encoders}
        with torch.no_grad():
            outputs = self.family.encode_text(modules, tokens)
        kept = {name: outputs[name].cpu() for name in self.cache.names}
        for name, tensor in kept.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise UserError(f"{name} of caption {texts[0]!r} is not finite; use another precision")
        return [{name: tensor[row] for name, tensor in kept.items()} for row in range(len(texts))]

    def keep(self, caption: str, outputs: Mapping[str, Tensor], files: Sequence[str]) -> None:
        """Put one caption's outputs into memory, or into each of the files."""
        if self.cache.memory is not None:
            for name, tensor in outputs.items():
                self.cache.memory.put((caption, name), tensor)
            return
        held = {**self._extras, **text_file.as_held(outputs, self.cache.joined)}
        arrays: Arrays = {name: store.as_array(x) for name, x in held.items()}
        shapes = {name: list(tensor.shape) for name, tensor in outputs.items()}
        arrays[store.RECORD] = store.record_array({**self._record(caption), SHAPES: shapes})
        for file in files:
            store.write(Path(file), arrays)
            self.index.learn_own(_KIND, file, self._finding(caption))

    def _check(self, wanted: WantedTexts, status: Status, known: str | None) -> tuple[bool, bool]:
        """Return whether a file is valid, and whether that is only because nothing speaks against it.

        Args:
            wanted: the file, and what it should hold.
            status, known: its state, and what the index holds about it.
        """
        if self.trust:
            return status is not None and status.st_size > 0, False
        image, file, caption = wanted
        finding = self._finding(caption)
        if known == finding or (self._adopts and known == _ADOPTED + finding):
            return True, known != finding
        try:
            is_valid, is_adopted = self._open(Path(file), caption, image)
        except BrokenCacheError as error:
            logger.warning("%s is damaged (%s) and made again", file, error)
            return False, False
        if is_valid:
            self.index.learn(_KIND, file, (_ADOPTED if is_adopted else "") + finding, status)
        return is_valid, is_adopted

    def _open(self, path: Path, caption: str, image: tuple[int, int]) -> tuple[bool, bool]:
        found, record = text_file.contents(path, self.cache.names, self.cache.joined)
        if not self._have_lengths(found):
            return False, False
        if record is not None:
            reason = texts_differ(record, self._record(caption), self.encoders, found)
            if reason:
                self.unfit[reason] += 1
            return not reason, False
        adopted = self._adopts and self._fits(path) and store.is_newer(path, *self._sources(image))
        return adopted, adopted

    def _finding(self, caption: str) -> str:
        """Return what the index holds about a file with valid outputs for a caption."""
        return f"{_digest(caption.encode())} {self._recipe}"

    @cached_property
    def _recipe(self) -> str:
        return _digest(json.dumps([self._extras_digest, self._identities, self.cache.names]).encode())

    def _have_lengths(self, shapes: Shapes) -> bool:
        """Whether all outputs are there, those for each token with as many rows as there would be now."""
        return all(
            name in shapes and (len(shapes[name]) < 2 or shapes[name][0] == self._lengths[encoder])
            for encoder in self.encoders
            for name in self.family.text_outputs[encoder]
        )

    def _fits(self, path: Path) -> bool:
        """Whether what depends on options beside the outputs is what would be computed now."""
        found = store.read(path, self._extras)
        return all(
            name in found and np.array_equal(found[name], store.as_array(extra))
            for name, extra in self._extras.items()
        )

    def _record(self, caption: str) -> Record:
        return {
            "caption": _digest(caption.encode()),
            "extras": self._extras_digest,
            "encoders": self._identities,
        }

    @cached_property
    def _identities(self) -> dict[str, list[str | int]]:
        """What each encoder's outputs are made from, besides the caption."""
        return {
            name: [
                store.model_identity(self.family.source(name)),
                str(self.parts.dtypes.get(name, torch.float32)),
                self._lengths[name],
                *filter(None, [self.parts.mark(name), self._emphasis.get(name)]),
            ]
            for name in self.encoders
        }

    @cached_property
    def _lengths(self) -> dict[str, int]:
        return {name: _num_positions(self._no_tokens[name]) for name in self.encoders}

    @cached_property
    def _emphasis(self) -> dict[str, str]:
        """Tell which encoders read brackets in captions as emphasis."""
        return {name: "emphasis" for name in self.encoders if f"{name}_weights" in self._no_tokens}

    @cached_property
    def _no_tokens(self) -> dict[str, Tensor]:
        return self.family.tokenize([""])

    @cached_property
    def _extras_digest(self) -> str:
        arrays = sorted((name, store.as_array(extra)) for name, extra in self._extras.items())
        return _digest(b"".join(f"{name}{array.shape}".encode() + array.tobytes() for name, array in arrays))

    def _sources(self, image: tuple[int, int]) -> list[str]:
        """Return the files that an unrecorded cache must be newer than: the image and its caption."""
        image_set = self.cache.sets[image[0]]
        path = image_set.images.paths[image[1]]
        return [path, stem(path) + image_set.subset(image[1]).caption_extension]


def _num_positions(ids: Tensor) -> int:
    """Return how many positions an encoder makes of (1, L) ids, or of (1, windows, L) joined at the ends."""
    windows, length = (1, *ids.shape[1:])[-2:]
    return windows * (length - 2) + 2


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
