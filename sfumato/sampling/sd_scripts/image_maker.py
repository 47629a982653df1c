"""Makes batches of images with the model of one run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.adapters.words.vocabulary import Vocabulary
from sfumato.config.run.image_scripts.hires import HighresFixConfig
from sfumato.config.run.image_scripts.speed import SpeedConfig
from sfumato.config.run.image_scripts.steps import StepConfig
from sfumato.config.run.run import Run
from sfumato.log import progress
from sfumato.models.components import autoencoder
from sfumato.models.interface.family import DENOISER, VAE, Family, ends_in_pure_noise
from sfumato.models.interface.parts import Parts
from sfumato.nn.device import default_device
from sfumato.sampling.effects.regions.regions import Regions
from sfumato.sampling.encoding import Text
from sfumato.sampling.formats import AskedDtype, Formats, formats_for
from sfumato.sampling.generator import parts_of
from sfumato.sampling.hires.stages import first_stage, num_steps
from sfumato.sampling.output.image_names import Stage
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from sfumato.sampling.sd_scripts.asked_images import AskedImage
from sfumato.sampling.sd_scripts.composition import (
    effects_of,
    num_step_draws,
    samplers_for,
    upscalers_for,
    words_of,
)
from sfumato.sampling.sd_scripts.networks import NetworkSet, networks_of
from sfumato.sampling.starts import noise

logger = logging.getLogger(__name__)


class StageImages(NamedTuple):
    """The images of one stage of a batch, each with what it was made of."""

    stage: Stage
    images: list[tuple[AskedImage, Image.Image]]


class ImageMaker:
    """Makes images with one run's model and networks, which are loaded when the first image needs them.

    Args:
        run: with a family and its model.
        family: bound to the model's files.

    Attributes:
        pipeline: makes the images.
        networks: at work on the model.

    Raises:
        UserError: a file is missing, broken or for another model; no weight has been loaded then.
    """

    def __init__(self, run: Run, family: Family, device: torch.device | None = None) -> None:
        self.family = family
        self._hires = run[HighresFixConfig]
        self._texts: tuple[object, Mapping[str, Text]] = (None, {})
        device = device or default_device()
        formats, speed = _formats(run[SpeedConfig], family, device), run[SpeedConfig]
        family.check(parts_of(family))
        dtype = formats.computed[DENOISER]
        self.networks = NetworkSet(run, family, networks_of(run), dtype=dtype)
        self.networks.check()
        steps, learned = run[StepConfig], [*words_of(run, family), *self.networks.words]
        self.pipeline = Pipeline(
            family,
            Parts(family, device, formats.stored, change=Vocabulary(family, learned)),
            dtype=dtype,
            dtypes=formats.computed,
            on_load=partial(self._on_load, speed=speed),
            zero_terminal=steps.zero_terminal_snr or ends_in_pure_noise(family),
            samplers=samplers_for(steps),
            noise_source=noise.in_order(num_step_draws, is_on_device=steps.device_noise),
            vae_batch_size=decoded_at_once(speed),
            upscalers=upscalers_for(self._hires),
            effects=effects_of(run),
            regions=Regions(self.networks.live),
        )

    def make(self, batch: Sequence[AskedImage]) -> Iterator[StageImages]:
        """Yield the images of a batch, stage by stage; a first stage only if it is to be kept.

        Args:
            batch: alike in what must not differ within one.

        Raises:
            UserError: there is no such sampler, or an image cannot be read.
        """
        self._apply_foreign()
        requests = [self.pipeline.fit(as_sampled(asked.request)) for asked in batch]
        self.networks.set_strengths(requests[0].multipliers)
        texts = self._encoded(requests)
        with progress(total=num_steps(requests[0]), unit="step", title="sampling") as bar:

            def advance(step: int, _: Tensor) -> None:
                bar.update(1)

            for number, latents in enumerate(self.pipeline.stages(requests, texts, advance)):
                yield from self._decoded(batch, requests, latents, is_first=number == 0)

    def _decoded(
        self, batch: Sequence[AskedImage], requests: Sequence[Request], latents: Tensor, *, is_first: bool
    ) -> Iterator[StageImages]:
        hires = requests[0].hires
        if hires is None:
            yield StageImages("", [*zip(batch, self.pipeline.images(latents), strict=True)])
        elif not is_first:
            yield StageImages("1", [*zip(batch, self.pipeline.images(latents), strict=True)])
        elif self._hires.highres_fix_save_1st:
            made = [replace(asked, request=first_stage(asked.request, hires)) for asked in batch]
            yield StageImages("0", [*zip(made, self.pipeline.images(latents), strict=True)])

    def _encoded(self, requests: Sequence[Request]) -> Mapping[str, Text]:
        """Return the texts of a batch, all of one length; those of the batch before if they are the same."""
        prompts = [prompt for request in requests for prompt in request.prompts()]
        key = requests[0].multipliers, frozenset(prompts)
        if self._texts[0] != key:
            self._texts = key, self.pipeline.encode(prompts)
        return self._texts[1]

    def _on_load(self, part: str, module: nn.Module, *, speed: SpeedConfig) -> None:
        if part == DENOISER and speed.opt_channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if part == VAE and (speed.vae_slices or 1) > 1:
            autoencoder.use_tiles(module)
        self.networks(part, module)

    def _apply_foreign(self) -> None:
        """Load all parts at once if somebody else's network wants to see them."""
        if not self.networks.has_foreign or DENOISER in self.pipeline.parts:
            return
        for part in (*self.family.text_outputs, DENOISER):
            self.pipeline.runner.run(part, lambda _: None)
        self.networks.apply_foreign(self.pipeline.parts)


def as_sampled(request: Request) -> Request:
    """Return what is sampled for a request: guidance up to 1 is off, and so is what needs more of it."""
    changes: dict[str, object] = {}
    if request.cfg_scale <= 1:
        changes |= {"cfg_scale": 1.0, "negative_scale": None}
        if request.negative_scale is not None:
            logger.warning(
                "negative scale %g has no effect with scale %g", request.negative_scale, request.cfg_scale
            )
    if request.clip_prompt is not None:
        logger.warning("prompt option --c has no effect but in the file: nothing is guided by CLIP")
    return replace(request, **changes) if changes else request


def decoded_at_once(speed: SpeedConfig) -> int:
    """Return how many images are decoded at once; below 1 the option is a share of the batch."""
    asked = speed.vae_batch_size or 1
    return max(int(asked * speed.batch_size), 1) if asked < 1 else int(asked)


def _formats(speed: SpeedConfig, family: Family, device: torch.device) -> Formats:
    name = "fp16" if speed.fp16 else "bf16" if speed.bf16 else "float32"
    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "float32": torch.float32}
    own = {VAE: AskedDtype(torch.float32, "--no_half_vae")} if speed.no_half_vae else {}
    return formats_for(parts_of(family), device, AskedDtype(dtypes[name], f"--{name}"), own)
