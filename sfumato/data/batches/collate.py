"""One image ready for training, and many of them stacked into a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

_SENT_WHOLE = 1 << 21
"""Bytes up to which a tensor is sent from a worker as it is."""


@dataclass(frozen=True)
class Sample:
    """One image of a batch: as latents or as pixels, with its caption and how it was framed.

    Attributes:
        latents: (C, h, w), scaled; None where latents are not cached.
        pixels: (3, H, W) in [-1, 1]; None where latents are cached.
        text: cached outputs of text encoders by name; empty where none are cached.
        original_size, crop_offset, target_size: (height, width), (top, left), (height, width).
        mask: (1, H, W) in [0, 1], of pixels or of latents, as the image is; None where all of it counts.
        control: (3, H, W) in [-1, 1], of pixels even where the image is there as latents.
        inpaint_mask: (1, H, W) bool, of pixels: True where an inpainting model repaints the image; None where
            it repaints all of it, or does not inpaint.
        custom_attributes: what the user noted about its subset.
        skipped: files that could not be decoded and that this sample stands in for.
    """

    path: str
    caption: str
    original_size: tuple[int, int]
    crop_offset: tuple[int, int]
    target_size: tuple[int, int]
    latents: Tensor | None = None
    pixels: Tensor | None = None
    text: dict[str, Tensor] = field(default_factory=dict)
    loss_weight: float = 1.0
    network_multiplier: float = 1.0
    mask: Tensor | None = None
    control: Tensor | None = None
    inpaint_mask: Tensor | None = None
    custom_attributes: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """What one training step sees; all images have the same size.

    Attributes:
        captions: B strings, processed (shuffled, dropped ...) for this epoch.
        paths: B file names, for messages.
        loss_weights: (B,) float32; the prior loss weight for regularisation images, 1 for others.
        network_multipliers: (B,) float32.
        original_sizes, crop_offsets, target_sizes: (B, 2) int64, (height, width) or (top, left).
        latents: (B, C, h, w), scaled, or None.
        pixels: (B, 3, H, W) in [-1, 1], or None; exactly one of `latents` and `pixels` is there.
        text: cached outputs of text encoders by name, each (B, ...).
        masks: (B, 1, H, W) in [0, 1], of pixels or of latents; None where no image has one.
        control: (B, 3, H, W) in [-1, 1], of pixels even where `latents` are given, or None.
        inpaint_masks: (B, 1, H, W) bool, True where an image is repainted, or None.
        custom_attributes: B tables, what the user noted about each image's subset.
        skipped: files that could not be decoded; images of the same bucket stand in for them.
    """

    captions: list[str]
    paths: list[str]
    loss_weights: Tensor
    network_multipliers: Tensor
    original_sizes: Tensor
    crop_offsets: Tensor
    target_sizes: Tensor
    latents: Tensor | None = None
    pixels: Tensor | None = None
    text: dict[str, Tensor] = field(default_factory=dict)
    masks: Tensor | None = None
    control: Tensor | None = None
    inpaint_masks: Tensor | None = None
    custom_attributes: list[Mapping[str, Any]] = field(default_factory=list)
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.captions)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; torch's DataLoader calls this."""
        return self.map(Tensor.pin_memory)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent from a worker: small tensors as arrays.

        torch sends a tensor as a file that both sides map, and opening it takes a question and an answer.
        """
        return {name: _changed(value, _as_sent) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was sent."""
        vars(self).update({name: _changed(value, _as_received) for name, value in state.items()})

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return the batch with every tensor changed."""

        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        return replace(self, **{f.name: _changed(getattr(self, f.name), changed) for f in fields(self)})


def _changed(value: Any, change: Callable[[Any], Any]) -> Any:
    return {key: change(part) for key, part in value.items()} if isinstance(value, dict) else change(value)


def _as_sent(value: Any) -> Any:
    # numpy has no bfloat16.
    is_small = isinstance(value, Tensor) and value.nbytes <= _SENT_WHOLE and value.dtype != torch.bfloat16
    return value.numpy() if is_small and value.device.type == "cpu" else value


def _as_received(value: Any) -> Any:
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one bucket; latents, pixels, control images and texts are there for all or none."""
    return Batch(
        captions=[s.caption for s in samples],
        paths=[s.path for s in samples],
        loss_weights=torch.tensor([s.loss_weight for s in samples], dtype=torch.float32),
        network_multipliers=torch.tensor([s.network_multiplier for s in samples], dtype=torch.float32),
        original_sizes=torch.tensor([s.original_size for s in samples], dtype=torch.int64),
        crop_offsets=torch.tensor([s.crop_offset for s in samples], dtype=torch.int64),
        target_sizes=torch.tensor([s.target_size for s in samples], dtype=torch.int64),
        latents=_stack([s.latents for s in samples]),
        pixels=_stack([s.pixels for s in samples]),
        text={name: torch.stack([s.text[name] for s in samples]) for name in samples[0].text},
        masks=_stack(_completed([s.mask for s in samples])),
        control=_stack([s.control for s in samples]),
        inpaint_masks=_stack([s.inpaint_mask for s in samples]),
        custom_attributes=[s.custom_attributes for s in samples],
        skipped=tuple(path for s in samples for path in s.skipped),
    )


def _completed(masks: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Let images without a mask count fully beside images that have one."""
    first = next((mask for mask in masks if mask is not None), None)
    return masks if first is None else [torch.ones_like(first) if mask is None else mask for mask in masks]


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if present and len(present) != len(tensors):
        raise ValueError("some samples of a batch have this tensor and some do not")
    return torch.stack(present) if present else None
