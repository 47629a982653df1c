"""Teach a model to repaint a part of an image: which runs do, and what the denoiser is told then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.collate import Batch
from sfumato.data.config.descriptions import asks_for_inpainting
from sfumato.errors import UserError
from sfumato.models.interface.conditioning import Conditioning, inpainting, masked
from sfumato.models.interface.family import DENOISER, VAE, Family, Inpaints, is_inpainting
from sfumato.models.interface.parts import Parts
from sfumato.training.trainables.conditions import Condition


@dataclass(frozen=True)
class MaskedImages:
    """What another condition says and, of each image, its mask and what the mask leaves; a `Condition`.

    Masks differ in every showing, so that what they leave is encoded anew. Images without a mask, which are
    those of data sets that do not ask for one, are repainted wholly.

    Attributes:
        besides: makes what the denoiser is told besides.
    """

    besides: Condition
    family: Family
    parts: Parts

    def __call__(self, batch: Batch, rng: torch.Generator) -> Conditioning:
        """Return it; what the autoencoder draws comes from `rng`."""
        told = self.besides(batch, rng)
        assert batch.pixels is not None
        mask = batch.inpaint_masks
        if mask is None:
            mask = torch.ones_like(batch.pixels[:, :1], dtype=torch.bool)
        with torch.no_grad():
            latents = self.family.encode_image(self.parts[VAE], masked(batch.pixels, mask), rng).float()
        return replace(told, control={**told.control, **inpainting(mask, latents)})


def decided(run: Run) -> Run:
    """Return the run with `train_inpainting` as its model is to have it, for which one data set may ask.

    Data sets are read by the run as it was: the option is what those have that say nothing.

    Raises:
        UserError: the file that describes the data sets is broken.
    """
    return run.with_sections(replace(run[ImageConfig], train_inpainting=asks_for_inpainting(run)))


def check(run: Run, family: Family) -> None:
    """Raise UserError if a run, as `decided`, and its base do not agree on inpainting."""
    is_asked = run[ImageConfig].train_inpainting
    if is_asked and not is_inpainting(family):
        raise UserError("train_inpainting cannot work here: no model of this kind inpaints; leave it out")
    if is_inpainting(family) and not is_asked:
        raise UserError(f"{family.source(DENOISER)} is an inpainting model; add --train_inpainting")


def without_effect(family: Family, trains_denoiser: bool) -> Iterator[str]:
    """Yield a line where a model does not inpaint, and will not learn to.

    Args:
        trains_denoiser: whether its own weights are trained; no adapter is trained on the first layer.
    """
    is_plain = isinstance(family, Inpaints) and family.is_inpainting and family.is_plain
    if is_plain and not trains_denoiser:
        yield (
            f"train_inpainting has no effect: {family.source(DENOISER)} is no inpainting model, and adapters "
            "do not change the layer that masks go into; take an inpainting model as base"
        )
