"""A sitting of image making: one run's models, adapters and defaults, for any number of images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.composition import CompositionConfig
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.image_series import ImageSeriesConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.log import progress
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from sfumato.nn.device import default_device
from sfumato.nn.precision import dtype_named
from sfumato.sampling import sampler_names
from sfumato.sampling.formats import AskedDtype, Formats, formats_for
from sfumato.sampling.generator import Generator, parts_of
from sfumato.sampling.hires.stages import num_steps
from sfumato.sampling.loaded_adapters import parse_adapter
from sfumato.sampling.output.image_files import save_image, write_image
from sfumato.sampling.prompts.prompt_options import PromptOptions
from sfumato.sampling.request import Request, random_seed
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent
from sfumato.sampling.settings.hires import Hires
from sfumato.sampling.settings.regions import Regions

logger = logging.getLogger(__name__)


class SamplingSession:
    """Makes images as one run asks for; models are loaded when the first image needs them.

    Args:
        run: with a `GenerationConfig` and the family's own options.
        device: the fastest of this machine where None.
        part_dtypes: the options that set the dtype of one part, by the part; see `Script`.

    Raises:
        UserError: a file, folder or dtype will not do; nothing has been loaded then.
    """

    def __init__(
        self,
        run: Run,
        device: torch.device | None = None,
        part_dtypes: Mapping[str, str] | None = None,
    ) -> None:
        settings = run[GenerationConfig]
        device = device or default_device()
        allow_partial = run.get(PartialUseConfig, PartialUseConfig()).allow_partial
        adapters = [parse_adapter(text, allow_partial=allow_partial) for text in settings.lora_weights]
        if not settings.for_regularisation:
            _prepare_folder(Path(settings.output_dir))
        self.settings = settings
        self._composition = run.get(CompositionConfig, CompositionConfig())
        self._series = series = run.get(ImageSeriesConfig, ImageSeriesConfig())
        self.family = family_for(run)
        self._generator = Generator(
            self.family,
            adapters=adapters,
            embeddings=[Path(name) for name in settings.embeddings],
            device=device,
            formats=formats_of(run, part_dtypes or {}, self.family, device),
            offload=settings.offload,
            is_reused=settings.interactive or bool(settings.for_regularisation or series.from_file),
            is_merged=settings.merge_lora_weights,
            vae_batch_size=series.vae_batch_size,
            vae_tiling=series.vae_tiling,
        )

    def request(self, options: PromptOptions) -> Request:
        """Return what a prompt line asks for, completed by the command line and the family's defaults."""
        settings, how, usual = self.settings, self._composition, self.family.sampling
        defaults = Request(
            "",
            negative_prompt=settings.negative_prompt or "",
            width=settings.width,
            height=settings.height,
            steps=settings.steps or usual.steps,
            seed=random_seed() if settings.seed is None else settings.seed,
            guidance=settings.guidance,
            cfg_scale=settings.cfg_scale,
            sampler=self._sampler(),
            image=settings.image,
            mask=settings.mask,
            schedule=how.schedule,
            negative_scale=how.negative_scale,
            cfg_rescale=how.cfg_rescale,
            **composed(how),
        )
        request = options.request(defaults, usual.scale)
        if request.hires is not None and request.mask is not None:  # which a line may name, too
            raise UserError("hires_scale and a mask are given: the second stage would repaint all; use one")
        return self._generator.pipeline.fit(request)

    def _sampler(self) -> str:
        asked, prediction = self.settings.sampler, self.family.prediction
        return (
            sampler_names.own_name(asked, prediction) or asked
            if asked
            else sampler_names.PREFERRED[prediction]
        )

    def make(self, lines: Sequence[PromptOptions]) -> list[Path]:
        """Make the images of prompt lines and return where they were written, in the order of making."""
        series = self._series
        asked = [self.request(line) for line in lines]
        requests = [replace(each, seed=each.seed + n) for each in asked for n in range(series.num_images)]
        for each in requests:
            logger.info("seed %d, %d x %d, %d steps", each.seed, each.width, each.height, each.steps)
        folder, written = Path(self.settings.output_dir), []
        for place, image in self._made(requests):
            written.append(save_image(image, folder, requests[place], self._details()))
            logger.info("wrote %s", written[-1])
        return written

    def write_all(self, wanted: Mapping[Path, Request]) -> None:
        """Make an image for each path, which appears when it is complete."""
        paths, requests = list(wanted), list(wanted.values())
        for place, image in self._made(requests):
            write_image(image, paths[place], requests[place], self._details())

    def _made(self, requests: Sequence[Request]) -> Iterator[tuple[int, Image.Image]]:
        """Yield images and the places of their requests, and show how far the steps of all are."""
        total = sum(num_steps(request) for request in requests)
        with progress(total=total, unit="step", title="loading") as bar:

            def advance(_: int, latents: Tensor) -> None:
                bar.set_description("sampling", refresh=False)
                bar.update(len(latents))

            yield from self._generator.each(requests, self._series.batch_size, advance)

    def _details(self) -> dict[str, Any]:
        return {"model": _model_name(self.family), "adapters": self._generator.adapters.names()}


def composed(how: CompositionConfig) -> dict[str, Any]:
    """Return the fields of a request that have settings of their own.

    With a second stage, `strength` is of the first, which the image is given to.
    """
    fields: dict[str, Any] = {"strength": how.strength}
    if how.hires_scale is not None:
        hires = Hires(how.hires_scale, how.hires_steps, how.strength, how.hires_upscaler)
        fields |= {"hires": hires, "strength": how.hires_strength}
    if how.deep_shrink_depth is not None:
        timestep, ratio = how.deep_shrink_timestep, how.deep_shrink_ratio
        fields["deep_shrink"] = DeepShrink(how.deep_shrink_depth, timestep, ratio=ratio)
    if how.gradual_latent_timestep is not None:
        ratio = how.gradual_latent_ratio
        fields["gradual_latent"] = GradualLatent(how.gradual_latent_timestep, ratio)
    if how.regions is not None:
        fields["regions"] = Regions(how.regions)
    return fields


def formats_of(run: Run, part_dtypes: Mapping[str, str], family: Family, device: torch.device) -> Formats:
    """Return the dtypes of all parts, as the run's options ask for them."""
    options = run.values()
    own = {part: _asked(options, name) for part, name in part_dtypes.items() if options.get(name)}
    return formats_for(parts_of(family), device, _asked(options, "dtype"), own)


def _asked(options: Mapping[str, Any], name: str) -> AskedDtype:
    return AskedDtype(dtype_named(options[name], f"--{name}"), f"--{name}")


def _prepare_folder(folder: Path) -> None:
    try_folder(folder, "choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)


def _model_name(family: Family) -> str:
    source = family.source(DENOISER)
    return source.name if source else ""
