"""From requests to images: encode the prompts, sample latents from a start, decode them.

Any family will do, with or without adapters attached: `sfumato generate` and the previews of a training run
share this code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.diffusion.samplers import OnStep
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER, Family, is_inpainting
from sfumato.models.interface.parts import Parts
from sfumato.sampling import conditions, sampler_names
from sfumato.sampling.effects import gradual_latent
from sfumato.sampling.effects.asked import effects_for
from sfumato.sampling.effects.regions.regions import Regions
from sfumato.sampling.encoding import FamilyReader, PromptReader, Text
from sfumato.sampling.guides.classifier_free import guides_for
from sfumato.sampling.hires.stages import first_stage, second_stage
from sfumato.sampling.hires.upscaling import UPSCALERS, Upscale
from sfumato.sampling.parts.codec import Codec, to_image
from sfumato.sampling.parts.part_runner import PartRunner
from sfumato.sampling.plan import Effect, Plan
from sfumato.sampling.request import Request
from sfumato.sampling.sampler_names import DISCRETE, SamplerChoice
from sfumato.sampling.spaces import space_for
from sfumato.sampling.starts import canvas, noise
from sfumato.sampling.starts.canvas import Canvas, canvas_for
from sfumato.sampling.starts.noise import NoiseSource
from sfumato.sampling.starts.start import Start, from_image, from_noise

logger = logging.getLogger(__name__)


class Pipeline:
    """Makes images with one family's parts.

    Args:
        family: what the parts are.
        parts: where they are loaded; a part that is loaded already is used as it is.
        dtype, dtypes, offload, is_reused, on_load: see `PartRunner`.
        zero_terminal: whether the denoiser's schedule in training ended in pure noise; see `space_for`.
        reader: how prompts are read; as the family does, where None.
        samplers: of discrete-time models, by name.
        noise_source: where random numbers come from.
        upscalers: what `Hires.upscaler` may name.
        effects: act on every batch, besides those that requests ask for.
        regions: what divides images into regions; None has no adapters of regions.
        vae_batch_size: images that are encoded and decoded at once.
        pastes: put what a mask keeps of an image back into the pixels, too: it comes out as it was, which an
            autoencoder alone does not manage.
    """

    def __init__(
        self,
        family: Family,
        parts: Parts,
        *,
        dtype: torch.dtype,
        dtypes: Mapping[str, torch.dtype] | None = None,
        offload: bool = False,
        is_reused: bool = False,
        on_load: Callable[[str, nn.Module], None] | None = None,
        zero_terminal: bool = False,
        reader: PromptReader | None = None,
        samplers: Mapping[str, SamplerChoice] = DISCRETE,
        noise_source: NoiseSource = noise.seeded,
        upscalers: Mapping[str, Upscale] = UPSCALERS,
        effects: Sequence[Effect] = (),
        regions: Regions | None = None,
        vae_batch_size: int = 1,
        pastes: bool = False,
    ) -> None:
        self.family = family
        self.parts = parts
        self.runner = PartRunner(parts, dtype, dtypes or {}, offload, is_reused, on_load)
        self.codec = Codec(family, self.runner, vae_batch_size)
        self._zero_terminal = zero_terminal
        self._reader = reader or FamilyReader(family)
        self._samplers = samplers
        self._noise_source = noise_source
        self._upscalers = upscalers
        self._regions = regions or Regions()
        self._effects = tuple(effects)
        self._pastes = pastes

    def encode(self, prompts: Iterable[str]) -> dict[str, Text]:
        """Return what the text encoders make of each prompt, by prompt.

        Prompts are encoded one by one, so that a prompt's numbers do not depend on its company.
        """
        tokens = self._reader.tokenize(list(dict.fromkeys(prompts)))
        encoded: dict[str, dict[str, Tensor]] = {prompt: {} for prompt in tokens}

        for encoder in self.family.text_outputs if tokens else ():

            def encode_all(model: nn.Module, encoder: str = encoder) -> None:
                for prompt, ids in tokens.items():
                    encoded[prompt] |= self._reader.encode(encoder, model, ids)

            self.runner.run(encoder, encode_all)
        return dict(encoded)

    def __call__(
        self, request: Request, texts: Mapping[str, Text] | None = None, on_step: OnStep | None = None
    ) -> Image.Image:
        """Make one image; see `batch`."""
        return self.batch([request], texts, on_step)[0]

    def batch(
        self,
        requests: Sequence[Request],
        texts: Mapping[str, Text] | None = None,
        on_step: OnStep | None = None,
    ) -> list[Image.Image]:
        """Make images at once; arguments and errors as `stages` has them."""
        *_, latents = self.stages(requests, texts, on_step)
        made = self.codec.decode(latents)
        if self._pastes and requests[0].mask is not None:
            painted = [canvas_for(self.fit(request), draws_mask=False) for request in requests]
            made = torch.cat([canvas.pasted(*each) for each in zip(made, painted, strict=True)])
        return [to_image(pixels) for pixels in made]

    def images(self, latents: Tensor) -> list[Image.Image]:
        """Return the images of clean latents (B, C, H/8, W/8)."""
        return [to_image(pixels) for pixels in self.codec.decode(latents)]

    def stages(
        self,
        requests: Sequence[Request],
        texts: Mapping[str, Text] | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """Yield the clean latents (B, C, H/8, W/8) of each stage: two with `Request.hires`, otherwise one.

        Args:
            requests: what to make, at least one, alike in `Request.batch_key`; sizes that the family cannot
                make are rounded down as `fit` does.
            texts: encoded prompts by prompt, from `encode`; what is missing is encoded now.
            on_step: called after each sampler step with its index and the latents of all images.

        Raises:
            UserError: there is no such sampler, or an image cannot be read.
            ValueError: the requests are not alike.
        """
        requests = [self.fit(request) for request in requests]
        if len({request.batch_key for request in requests}) != 1:
            raise ValueError("a batch is of one size, number of steps, sampler and kind of guidance")
        texts, prompts = texts or {}, [prompt for request in requests for prompt in request.prompts()]
        texts = {**texts, **self.encode(prompt for prompt in prompts if prompt not in texts)}
        self._regions.encode(self.encode, requests)
        hires = requests[0].hires
        if hires is None:
            yield self._latents(requests, texts, on_step)
            return
        small = self._latents([first_stage(request, hires) for request in requests], texts, on_step)
        yield small
        size = requests[0].width, requests[0].height
        large = self._upscalers[hires.upscaler](small, size, self.codec)
        yield self._latents([second_stage(request) for request in requests], texts, on_step, large)

    def fit(self, request: Request) -> Request:
        """Return the request with sides rounded down to what the family can make; say so if they change.

        Raises:
            UserError: there is no such sampler or schedule, an image cannot be read, or latents cannot grow.
        """
        sampler_names.check(request.sampler, request.schedule, self.family.prediction)
        canvas.check(request)
        gradual_latent.check(request, self.family)
        unit = self.family.latents.downscale * self.family.latents.patch
        width, height = (max(side // unit * unit, unit) for side in (request.width, request.height))
        if (width, height) != (request.width, request.height):
            logger.warning(
                "%d x %d is no multiple of %d: the image will be %d x %d",
                *(request.width, request.height, unit, width, height),
            )
        return replace(request, width=width, height=height)

    def _latents(
        self,
        requests: Sequence[Request],
        texts: Mapping[str, Text],
        on_step: OnStep | None,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Return clean latents (B, C, H/8, W/8), float32.

        Args:
            clean: latents to start from, instead of what the requests name.
        """
        repaints = is_inpainting(self.family)
        canvases = [canvas_for(request, draws_mask=repaints) for request in requests]
        start = self._start(requests[0], canvases) if clean is None else from_image(clean)
        control = conditions.canvas_control(canvases, self.codec) if repaints else {}
        conditioning = conditions.conditioning_for(requests, texts, control, self.parts.device)

        def sample(model: nn.Module) -> Tensor:
            plan = self._plan(model, requests, texts, conditioning, start)
            with ExitStack() as effects:
                for effect in (*effects_for(requests[0]), self._regions, *self._effects):
                    plan = effects.enter_context(effect(plan))
                return plan.latents(on_step)

        return self.runner.run(DENOISER, sample)

    def _start(self, request: Request, canvases: Sequence[Canvas]) -> Start:
        """Return a start from images where there are any; inpainting models need none for what they keep."""
        if request.image is None or (is_inpainting(self.family) and request.strength in (None, 1)):
            return from_noise
        clean = self.codec.encode(torch.cat([each.pixels for each in canvases]))
        if request.mask is None or is_inpainting(self.family):
            return from_image(clean)
        keep = torch.cat([canvas.kept(each, clean.shape[-2:]) for each in canvases])
        return from_image(clean, keep.to(clean.device))

    def _plan(
        self,
        model: nn.Module,
        requests: Sequence[Request],
        texts: Mapping[str, Text],
        conditioning: Conditioning,
        start: Start,
    ) -> Plan:
        size, request, device = self.family.latents, requests[0], self.parts.device
        shape = (size.channels, request.height // size.downscale, request.width // size.downscale)
        space = space_for(self.family, request, zero_terminal=self._zero_terminal, samplers=self._samplers)
        return Plan(
            family=self.family,
            model=model,
            space=space,
            requests=requests,
            texts=texts,
            conditioning=conditioning,
            noise=self._noise_source(requests, shape, device),
            start=start,
            guides=guides_for(requests, device),
            sampler=space.sampler,
        )
