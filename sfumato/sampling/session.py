"""A sitting of image making: one run's models, adapters and defaults, for any number of images."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.run import Run
from sfumato.log import progress
from sfumato.models.interface.family import DENOISER, VAE, Family, ends_in_pure_noise
from sfumato.models.interface.parts import Parts
from sfumato.models.registry.families import family_for
from sfumato.nn.device import default_device
from sfumato.nn.precision import check_compute, check_storage, computable, dtype_named, is_storage_only
from sfumato.sampling import sampler_names
from sfumato.sampling.loaded_adapters import Attachments, parse_adapter
from sfumato.sampling.output import save_image
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.prompts import PromptOptions
from sfumato.sampling.request import Request, random_seed

logger = logging.getLogger(__name__)


class SamplingSession:
    """Makes images as one run asks for; models are loaded when the first image needs them.

    Args:
        run: with a `GenerationConfig` and the family's own options.
        device: the fastest of this machine where None.

    Raises:
        UserError: a file, folder or dtype will not do; nothing has been loaded then.
    """

    def __init__(self, run: Run, device: torch.device | None = None) -> None:
        settings = run[GenerationConfig]
        device = device or default_device()
        adapters = [parse_adapter(text) for text in settings.lora_weights]
        _prepare_folder(Path(settings.output_dir))
        self.settings = settings
        self.family = family_for(run)
        parts = [*self.family.text_outputs, DENOISER, VAE]
        stored, computed = _number_formats(run, parts, device)
        self.family.check(parts)
        self.attachments = Attachments(
            self.family, adapters, dtype=computed[DENOISER], is_merged=settings.merge_lora_weights
        )
        self.attachments.check()
        self._pipeline = Pipeline(
            self.family,
            Parts(self.family, device, stored),
            dtype=computed[DENOISER],
            dtypes=computed,
            offload=settings.offload,
            is_reused=settings.interactive,
            on_load=self.attachments,
            zero_terminal=ends_in_pure_noise(self.family),
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
        )
        return self._pipeline.fit(options.request(defaults, usual.scale))

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
        self.attachments.set_strengths(options.strengths)
        logger.info("seed %d, %d x %d, %d steps", request.seed, request.width, request.height, request.steps)
        texts = self._pipeline.encode(request.prompts())  # before the bar starts to measure steps
        with progress(total=request.steps, unit="step", title="sampling") as bar:

            def advance(step: int, _: Tensor) -> None:
                bar.update(step + 1 - bar.n)

            image = self._pipeline(request, texts, on_step=advance)
        details = {"model": _model_name(self.family), "adapters": self.attachments.names()}
        path = save_image(image, Path(self.settings.output_dir), request, details)
        logger.info("wrote %s", path)
        return path


def _number_formats(
    run: Run, parts: list[str], device: torch.device
) -> tuple[dict[str, torch.dtype], dict[str, torch.dtype]]:
    """Return what each part is stored in, and what it computes in.

    A part's own option is named after the part; the denoiser's after the family; the VAE's is `ae_dtype`.
    8-bit formats only store, and only what is made of Linear layers.
    """
    options = run.values()
    general = dtype_named(options["dtype"], "--dtype")
    stored, computed = {}, {}
    for part in parts:
        option = {DENOISER: f"{run.family}_dtype", VAE: "ae_dtype"}.get(part, f"{part}_dtype")
        own = options.get(option)
        dtype = dtype_named(own, f"--{option}") if own else general
        computed[part] = dtype if computable(dtype) == dtype else computable(general)
        stored[part] = computed[part] if part == VAE else dtype
        named = f"--{option if own else 'dtype'}"
        check_compute(computed[part], device, named)
        if is_storage_only(stored[part]):
            check_storage(device, named)
    return stored, computed


def _prepare_folder(folder: Path) -> None:
    try_folder(folder, "choose another --output_dir")
    folder.mkdir(parents=True, exist_ok=True)


def _model_name(family: Family) -> str:
    source = family.source(DENOISER)
    return source.name if source else ""
