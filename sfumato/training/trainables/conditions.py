"""What the denoiser listens to in a step, made of a batch.

A trainable that tells the denoiser more takes `Words`, or any other condition, and adds to what it makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from sfumato.data.batches.collate import Batch
from sfumato.models.interface.conditioning import CONTROL_IMAGE, Conditioning, ImageSizes
from sfumato.models.interface.family import Family
from sfumato.models.interface.parts import Parts
from sfumato.transfer import to_device


class Condition(Protocol):
    """Makes what the denoiser listens to."""

    def __call__(self, batch: Batch, rng: torch.Generator) -> Conditioning:
        """Return it for a batch that is on the device.

        Args:
            rng: for what is drawn, on the processor; noise and timesteps do not depend on it.
        """
        ...


@dataclass(frozen=True)
class ControlImages:
    """What another condition says, and the control image of each image; a `Condition`.

    Attributes:
        besides: makes what the denoiser is told besides.
    """

    besides: Condition

    def __call__(self, batch: Batch, rng: torch.Generator) -> Conditioning:
        """Return it; nothing is drawn for control images."""
        told = self.besides(batch, rng)
        assert batch.control is not None
        return replace(told, control={**told.control, CONTROL_IMAGE: batch.control})


@dataclass(frozen=True)
class Words:
    """The captions, the distilled guidance scale, and how images were framed; a `Condition`.

    Attributes:
        live_encoders: text encoders that run in every step, because their outputs are not cached.
        trained_encoders: those of them that gradients go through.
        guidance: scale that distilled models are told.
    """

    family: Family
    parts: Parts
    device: torch.device
    live_encoders: Sequence[str]
    trained_encoders: Sequence[str] = ()
    guidance: float = 1.0

    def __call__(self, batch: Batch, rng: torch.Generator) -> Conditioning:
        """Return what captions say, cached or encoded now; nothing is drawn."""
        text = dict(batch.text)
        if self.live_encoders:
            tokens = self.family.tokenize(batch.captions)
            moved = {name: to_device(ids, self.device) for name, ids in tokens.items()}
            for name in self.live_encoders:
                # An encoder elsewhere takes tokens as they are; from the card, each copy would be waited for.
                own = tokens if name in self.parts.devices else moved
                with nullcontext() if name in self.trained_encoders else torch.no_grad():
                    made = self.family.encode_text({name: self.parts[name]}, own)
                text |= {key: to_device(output, self.device) for key, output in made.items()}
        guidance = torch.full((len(batch),), self.guidance, device=self.device)
        return Conditioning(
            text, guidance, ImageSizes(batch.original_sizes, batch.crop_offsets, batch.target_sizes)
        )
