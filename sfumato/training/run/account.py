"""What a run will hold in memory, byte by byte, found before any weight is loaded.

A step of the run is taken without numbers (see `nn/dry_run.py`), when the optimizer has its state: it is what
all but the first are like. Its batch is the largest of the run. Encoding images and captions beforehand is
counted likewise, as if nothing were cached yet. Text encoders that the processor runs count as RAM. Previews
are not counted.
"""

from __future__ import annotations

import gc
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.image_sets import ImageSet
from sfumato.data.custom.user_set import UserSet
from sfumato.data.images.buckets import Size
from sfumato.errors import UserError, guest_code
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.nn import dry_run, offload
from sfumato.nn.device import free_bytes
from sfumato.nn.dry_run import Tally
from sfumato.nn.precision import name_of
from sfumato.training.core.distributed import Processes
from sfumato.training.core.memory_account import ENCODING_IMAGES, Account, MemoryItem, Phase
from sfumato.training.core.plan import Plan
from sfumato.training.run.caches import captions_at_once
from sfumato.training.run.session import TrainingSession
from sfumato.training.trainables import Trainable, method_for
from sfumato.training.update.optimizer_step import WeightUpdate
from sfumato.training.update.stepping import Stepping

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Shape and dtype of tensors by name."""

_MOST_S = 60.0

logger = logging.getLogger(__name__)


def foresee(session: TrainingSession) -> None:
    """Say what a run will hold on its device, and warn if that is more than there is.

    Whatever goes wrong is one line, for this is advice. A process of its own would be no safer: all that is
    called here runs again in the training, and nothing of it holds numbers.
    """
    device = session.processes.device
    if device.type == "cpu" or not session.processes.is_first:
        return
    try:
        with guest_code("counting failed"):
            counted = account(session, device.type, _MOST_S)
            logger.info(counted.summary())
            if warning := counted.shortage(free_bytes(device)):
                logger.warning(warning)
    except UserError as error:
        logger.warning("how much memory this run takes cannot be foreseen: %s", error)


def account(session: TrainingSession, kind: str, within_s: float = math.inf) -> Account:
    """Return what a run holds.

    Args:
        kind: of the device that is meant, e.g. "cuda"; it need not be there.
        within_s: seconds after which TimeoutError is raised.
    """
    _ = session.optimizer.steps_apart  # found by trying, which takes numbers; the answer is kept
    with dry_run.without_numbers(kind, within_s) as tally:
        dry = _Dry(session, tally, kind)
        return Account([*dry.caching(), dry.training()])


class _Dry:
    """A run on models without numbers."""

    def __init__(self, session: TrainingSession, tally: Tally, kind: str) -> None:
        run = _uncompiled(session.run)
        self._run, self._family, self._tally = run, session.family, tally
        self._swapped = () if session.swap is None else session.swap.indices
        self._session = replace(
            session,
            run=run,
            method=method_for(run, session.family),
            processes=cast(Processes, _Alone()),
            precision=replace(session.precision, device=dry_run.DEVICE),
            state=None,
            previews=None,
            swap=None,
        )
        family = cast(Family, _Weightless(session.family))
        self._parts = replace(self._session.parts(), family=family, change=None)
        self._in_ram = [] if kind == "cpu" else _of_processor(self._parts)
        self._texts: Shapes = {}

    def caching(self) -> Iterator[Phase]:
        """Yield what encodes images and captions once."""
        config, encoders = self._run[CachingConfig], self._session.cached_encoders
        with torch.no_grad(), self._session.precision.autocast():
            if config.cache_latents:
                yield self._encoding(ENCODING_IMAGES, [VAE], self._encode_images)
            if encoders:
                yield self._encoding("encoding captions", encoders, self._encode_captions)

    def training(self) -> Phase:
        """Return what a step holds."""
        session, tally = self._session, self._tally
        trainable = session.method.build(self._parts, session.precision, session.live_encoders)
        update = session.update(self._parts, trainable.groups())
        batch = self._batch()
        for part in self._encoders_of(batch):
            _ = self._parts[part]  # loaded before the step, which is to tell what passes
        self._make_state(update.stepping)
        gc.collect()
        resting = tally.live
        tally.peak, tally.host = resting, 0
        in_between = self._step(trainable, update, batch)
        peak = tally.peak
        lasting = self._lasting(trainable, update)
        passing = [
            MemoryItem("the batch", resting - self._resident(lasting)),
            MemoryItem("kept for the backward pass", in_between - resting, tally.host),
            MemoryItem("working memory", peak - in_between),
        ]
        return Phase("training", [item for item in (*lasting, *passing) if item.device or item.host])

    def _encoding(self, name: str, parts: Sequence[str], encode: Callable[[], object]) -> Phase:
        claim = _Claim()
        weights = [item for part in parts for item in self._weights(part, claim)]
        before = self._tally.peak = self._tally.live
        encode()
        self._parts.release(*parts)
        return Phase(name, [*weights, MemoryItem("working memory", self._tally.peak - before)])

    def _encode_images(self) -> None:
        count, (width, height) = _largest(self._session, self._run[CachingConfig].vae_batch_size)
        pixels = torch.empty(count, 3, height, width)
        self._family.encode_image(self._parts[VAE], pixels, torch.Generator())

    def _encode_captions(self) -> None:
        config, encoders = self._run[CachingConfig], self._session.cached_encoders
        captions = [_longest_caption(self._session)] * captions_at_once(self._run)
        tokens = self._family.tokenize(captions)
        here = {name: self._parts[name] for name in encoders if name not in self._in_ram}
        away = {name: self._parts[name] for name in encoders if name in self._in_ram}
        outputs = self._family.encode_text(here, tokens)
        peak = self._tally.peak
        outputs |= self._family.encode_text(away, tokens)
        self._tally.peak = peak
        for name in (name for encoder in encoders for name in self._family.text_outputs[encoder]):
            found = outputs[name]
            is_widened = found.dtype is torch.bfloat16 and config.cache_text_encoder_outputs_to_disk
            self._texts[name] = tuple(found.shape[1:]), torch.float32 if is_widened else found.dtype

    def _batch(self) -> Batch:
        data = self._session.training_set
        if isinstance(data, UserSet):
            return data.example.map(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        count, (width, height) = _largest(self._session)
        space = self._family.latents
        small = height // space.downscale, width // space.downscale
        is_cached = self._run[CachingConfig].cache_latents
        has_masks = any(s.mask(0) is not None for s in _sets(self._session))
        has_inpainting = any(s.plan.train_inpainting for s in _sets(self._session))
        has_control = any(s.control(0) is not None for s in _sets(self._session))
        sizes = [torch.empty(count, 2, dtype=torch.int64) for _ in range(3)]
        return Batch(
            captions=[_longest_caption(self._session)] * count,
            paths=[""] * count,
            loss_weights=torch.empty(count),
            network_multipliers=torch.empty(count),
            original_sizes=sizes[0],
            crop_offsets=sizes[1],
            target_sizes=sizes[2],
            latents=torch.empty(count, space.channels, *small) if is_cached else None,
            pixels=None if is_cached else torch.empty(count, 3, height, width),
            text={
                name: torch.empty(count, *shape, dtype=dtype) for name, (shape, dtype) in self._texts.items()
            },
            masks=torch.empty(count, 1, *(small if is_cached else (height, width))) if has_masks else None,
            control=torch.empty(count, 3, height, width) if has_control else None,
            inpaint_masks=torch.empty(count, 1, height, width, dtype=torch.bool) if has_inpainting else None,
        )

    def _step(self, trainable: Trainable, update: WeightUpdate, batch: Batch) -> int:
        """Take a step; return the most bytes that were held between a forward and a backward pass."""
        count = min(2, self._run[LengthConfig].gradient_accumulation_steps)
        step, held = Plan(count, count, count).step(1), 0
        trainable.step_begins(step)
        update.begin(step)
        for _ in step.micro_batches:
            loss = trainable.loss(batch, torch.Generator()).per_sample.mean() / count
            held = max(held, self._tally.live)
            update.accumulate(loss)
        update.finish()
        trainable.step_ends()
        return held

    def _encoders_of(self, batch: Batch) -> list[str]:
        """Return the parts that a step encodes a batch with."""
        outputs = self._family.text_outputs
        texts = [part for part in self._session.live_encoders if not batch.text.keys() >= {*outputs[part]}]
        return texts if batch.pixels is None else [*texts, VAE]

    def _make_state(self, stepping: Stepping) -> None:
        """Let the optimizer have what it remembers, by steps on gradients without numbers."""
        for index, group in enumerate(stepping.optimizer.param_groups):
            absent = [parameter for parameter in group["params"] if parameter.grad is None]
            for parameter in absent:
                parameter.grad = torch.empty_like(parameter)
            stepping.step_share(index)
            for parameter in absent:
                parameter.grad = None

    def _lasting(self, trainable: Trainable, update: WeightUpdate) -> list[MemoryItem]:
        """Return what stays from step to step."""
        claim, stepping = _Claim(), update.stepping
        parts = [part for part in (DENOISER, VAE, *self._family.text_outputs) if part in self._parts]
        weights = [item for part in parts for item in self._weights(part, claim)]
        own = claim(tensor for _, tensor in trainable.tensors()) + claim(stepping.parameters)
        gradients = (parameter.grad for parameter in stepping.parameters)
        return [
            *weights,
            *self._slots(),
            MemoryItem("adapter", own),
            MemoryItem("gradients", claim(gradient for gradient in gradients if gradient is not None)),
            MemoryItem("state of the optimizer", claim(tree_leaves(list(stepping.optimizer.state.values())))),
        ]

    def _weights(self, part: str, claim: _Claim) -> Iterator[MemoryItem]:
        """Yield an item for each dtype of a part's weights."""
        model = self._parts[part]
        away: Counter[torch.dtype] = Counter()
        for block in self._travelling(part):
            for tensor in offload.own_tensors(block):
                away[tensor.dtype] += tensor.nbytes
        for dtype in sorted({tensor.dtype for tensor in offload.own_tensors(model)}, key=str):
            total = claim(tensor for tensor in offload.own_tensors(model) if tensor.dtype is dtype)
            in_ram = total if part in self._in_ram else away[dtype]
            yield MemoryItem(f"{part} in {name_of(dtype)}", total - in_ram, in_ram)

    def _travelling(self, part: str) -> list[nn.Module]:
        if part != DENOISER or not self._swapped:
            return []
        blocks = self._family.blocks(DENOISER, self._parts[DENOISER])
        return [blocks[index] for index in self._swapped]

    def _slots(self) -> Iterator[MemoryItem]:
        sizes = [offload.buffer_bytes(block) for block in self._travelling(DENOISER)]
        if sizes:
            yield MemoryItem("places for blocks that travel", offload.SLOTS * max(sizes))

    def _resident(self, lasting: Iterable[MemoryItem]) -> int:
        """Return what items are without block swap, which this run leaves out."""
        slots = sum(item.device for item in self._slots())
        return sum(item.device + item.host for item in lasting) - slots


class _Claim:
    """Sums up the memory behind tensors; what was claimed before counts nothing."""

    def __init__(self) -> None:
        self._seen: dict[int, torch.UntypedStorage] = {}

    def __call__(self, tensors: Iterable[Any]) -> int:
        storages = [tensor.untyped_storage() for tensor in tensors if isinstance(tensor, Tensor)]
        new = {id(storage): storage for storage in storages if id(storage) not in self._seen}
        self._seen |= new
        return sum(storage.nbytes() for storage in new.values())


@dataclass(frozen=True)
class _Weightless:
    """A family whose models have no numbers."""

    family: Family

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        return dry_run.empty_like(self.family.load(part, dtype, torch.device("meta")))

    def source(self, part: str) -> None:
        """Return nothing: no file is read for its weights."""


class _Alone:
    """The only process of a run."""

    rank, world, device = 0, 1, dry_run.DEVICE

    def sum_(self, tensor: Tensor) -> None:
        """Leave `tensor`, which is the sum, as it is."""


def _of_processor(parts: Parts) -> list[str]:
    """Return the parts that the processor runs, whatever runs the others."""
    return [part for part, device in parts.devices.items() if device.type == "cpu"]


def _uncompiled(run: Run) -> Run:
    """Return a run whose blocks are not compiled, which is no business of the count."""
    return run.with_sections(replace(run[MemoryConfig], torch_compile=False))


def _largest(session: TrainingSession, at_once: int | None = None) -> tuple[int, Size]:
    """Return how many images of which size the batch with most pixels has."""
    batches = [
        (min(len(items), at_once or image_set.plan.batch_size), size)
        for image_set in _sets(session)
        for size, items in image_set.buckets.items()
    ]
    return max(batches, key=lambda batch: batch[0] * batch[1][0] * batch[1][1])


def _longest_caption(session: TrainingSession) -> str:
    return max(
        (caption for image_set in _sets(session) for caption in image_set.images.captions),
        key=len,
        default="",
    )


def _sets(session: TrainingSession) -> Sequence[ImageSet]:
    assert isinstance(session.training_set, TrainingSet)
    return session.training_set.sets
