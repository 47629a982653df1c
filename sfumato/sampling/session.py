"""A sitting of image making: one run's models, adapters and defaults, for any number of images."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.log import progress
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from sfumato.nn.device import default_device
from sfumato.nn.precision import dtype_named
from sfumato.sampling import sampler_names
from sfumato.sampling.formats import AskedDtype, Formats, formats_for
from sfumato.sampling.generator import Generator, parts_of
from sfumato.sampling.loaded_adapters import parse_adapter
from sfumato.sampling.output.image_files import save_image, write_image
from sfumato.sampling.prompts.prompt_options import PromptOptions
from sfumato.sampling.request import Request, random_seed

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
        self.family = family_for(run)
        self._generator = Generator(
            self.family,
            adapters=adapters,
            embeddings=[Path(name) for name in settings.embeddings],
            device=device,
            formats=formats_of(run, part_dtypes or {}, self.family, device),
            offload=settings.offload,
            is_reused=settings.interactive or bool(settings.for_regularisation),
            is_merged=settings.merge_lora_weights,
        )

    def request(self, options: PromptOptions) -> Request:
        """Return what a prompt line asks for, completed by the command line and the family's defaults."""
        settings, usual = self.settings, self.family.sampling
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
        )
        return self._generator.pipeline.fit(options.request(defaults, usual.scale))

    def _sampler(self) -> str:
        asked, prediction = self.settings.sampler, self.family.prediction
        return (
            sampler_names.own_name(asked, prediction) or asked
            if asked
            else sampler_names.PREFERRED[prediction]
        )

    def make(self, options: PromptOptions) -> Path:
        """Make one image and return where it was written."""
        request = self.request(options)
        adapters, pipeline = self._generator.adapters, self._generator.pipeline
        adapters.set_strengths(request.multipliers)
        logger.info("seed %d, %d x %d, %d steps", request.seed, request.width, request.height, request.steps)
        texts = pipeline.encode(request.prompts())  # before the bar starts to measure steps
        with progress(total=request.steps, unit="step", title="sampling") as bar:

            def advance(step: int, _: Tensor) -> None:
                bar.update(step + 1 - bar.n)

            image = pipeline(request, texts, on_step=advance)
        path = save_image(image, Path(self.settings.output_dir), request, self._details())
        logger.info("wrote %s", path)
        return path

    def write_all(self, wanted: Mapping[Path, Request]) -> None:
        """Make an image for each path, which appears when it is complete; texts are encoded once."""
        pipeline = self._generator.pipeline
        texts = pipeline.encode(prompt for request in wanted.values() for prompt in request.prompts())
        for path, request in progress(wanted.items(), unit="image", title="sampling"):
            write_image(pipeline(request, texts), path, request, self._details())

    def _details(self) -> dict[str, Any]:
        return {"model": _model_name(self.family), "adapters": self._generator.adapters.names()}


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
