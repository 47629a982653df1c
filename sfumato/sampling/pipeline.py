"""From requests to images: encode the prompts, integrate from noise to latents, decode.

Any family will do, with or without adapters attached: `sfumato generate` and the previews of a training run
share this code.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.diffusion.noise import draw_rows
from sfumato.diffusion.samplers import OnStep
from sfumato.models.interface.conditioning import Conditioning, ImageSizes, inpainting, masked
from sfumato.models.interface.family import DENOISER, VAE, Family, is_inpainting
from sfumato.models.interface.parts import Parts
from sfumato.sampling import canvas, sampler_names
from sfumato.sampling.canvas import canvas_for
from sfumato.sampling.denoiser import Denoiser
from sfumato.sampling.encoding import encode_prompt, tokenize_prompt
from sfumato.sampling.guides import Guide, classifier_free, guided
from sfumato.sampling.request import Request
from sfumato.sampling.spaces import space_for

Text = Mapping[str, Tensor]
"""One prompt as the denoiser reads it: the text encoders' outputs by name, each (1, ...)."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Pipeline:
    """Makes images with one family's parts.

    Args:
        family: what the parts are.
        parts: where they are loaded; a part that is loaded already is used as it is.
        dtype: what to compute in; 16-bit types compute under autocast, whatever the weights are stored in.
        dtypes: parts that compute in another type.
        offload: keep only the part at work on the device.
        is_reused: with `offload`, whether parts wait in RAM for the next image; otherwise they are
            forgotten after use, and read from disk again should they be needed.
        on_load: called with a part's name and the part after each loading, to attach adapters.
        zero_terminal: whether the denoiser's schedule in training ended in pure noise; see `space_for`.
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
    ) -> None:
        self.family = family
        self.parts = parts
        self._dtype = dtype
        self._dtypes = dtypes or {}
        self._offload = offload
        self._is_reused = is_reused
        self._on_load = on_load
        self._zero_terminal = zero_terminal

    def encode(self, prompts: Iterable[str]) -> dict[str, Text]:
        """Return what the text encoders make of each prompt, by prompt.

        Prompts are encoded one by one, so that a prompt's numbers do not depend on its company.
        """
        tokens = {prompt: tokenize_prompt(self.family, prompt) for prompt in prompts}
        encoded: dict[str, dict[str, Tensor]] = {prompt: {} for prompt in tokens}

        for encoder in self.family.text_outputs if tokens else ():

            def encode_all(model: nn.Module, encoder: str = encoder) -> None:
                for prompt, ids in tokens.items():
                    encoded[prompt] |= encode_prompt(self.family, encoder, model, ids)

            self._run(encoder, encode_all)
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
        """Make images at once.

        Args:
            requests: what to make, at least one, alike in `Request.batch_key`; sizes that the family cannot
                make are rounded down as `fit` does.
            texts: encoded prompts by prompt, from `encode`; what is missing is encoded now.
            on_step: called after each sampler step with its index and the latents of all images.

        Raises:
            UserError: there is no such sampler.
            ValueError: the requests are not alike.
        """
        requests = [self.fit(request) for request in requests]
        if len({request.batch_key for request in requests}) != 1:
            raise ValueError("a batch is of one size, number of steps, sampler and kind of guidance")
        texts, prompts = texts or {}, [prompt for request in requests for prompt in request.prompts()]
        texts = {**texts, **self.encode(prompt for prompt in prompts if prompt not in texts)}
        conditioning = self._conditioning(requests, texts, self._canvases(requests))
        latents = self._run(DENOISER, lambda model: self._sample(model, requests, conditioning, on_step))
        # One by one: decoding takes more memory than all before it.
        rows = latents.split(1)
        pixels = self._run(VAE, lambda vae: [self.family.decode_image(vae, row) for row in rows])
        return [_image(each) for each in pixels]

    def fit(self, request: Request) -> Request:
        """Return the request with sides rounded down to what the family can make; say so if they change.

        Raises:
            UserError: there is no such sampler, or the model does not look at an image as the request names.
        """
        sampler_names.check(request.sampler, self.family.prediction)
        canvas.check(request, self.family)
        unit = self.family.latents.downscale * self.family.latents.patch
        width, height = (max(side // unit * unit, unit) for side in (request.width, request.height))
        if (width, height) != (request.width, request.height):
            logger.warning(
                "%d x %d is no multiple of %d: the image will be %d x %d",
                *(request.width, request.height, unit, width, height),
            )
        return replace(request, width=width, height=height)

    def _sample(
        self,
        model: nn.Module,
        requests: Sequence[Request],
        conditioning: Conditioning,
        on_step: OnStep | None,
    ) -> Tensor:
        """Return clean latents (B, C, H/8, W/8), float32."""
        size, request = self.family.latents, requests[0]
        shape = (size.channels, request.height // size.downscale, request.width // size.downscale)
        rngs = [torch.Generator().manual_seed(each.seed) for each in requests]
        noise = draw_rows(shape, rngs).to(self.parts.device)
        space = space_for(self.family, request, zero_terminal=self._zero_terminal)
        sigmas = space.sigmas(request)
        denoise = guided(Denoiser(self.family, model, space, conditioning), self._guides(requests))
        x = space.sampler(denoise, space.start(noise, float(sigmas[0])), sigmas, rngs, on_step)
        return space.end(x, float(sigmas[-1]))

    def _guides(self, requests: Sequence[Request]) -> list[Guide]:
        """Return what leads the denoiser, from the model to the sampler."""
        if not requests[0].is_guided_by_negative:
            return []
        scales = torch.tensor([request.cfg_scale for request in requests], device=self.parts.device)
        return [classifier_free(scales.reshape(-1, 1, 1, 1))]

    def _canvases(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        """Return what an inpainting model is told of the image of each request; nothing for other models."""
        if not is_inpainting(self.family):
            return {}
        filled, device = [canvas_for(request) for request in requests], self.parts.device
        shown = [masked(each.pixels, each.mask).to(device) for each in filled]
        # One by one, as images are decoded.
        latents = self._run(VAE, lambda vae: [self.family.encode_image(vae, row, None) for row in shown])
        masks = torch.cat([each.mask for each in filled]).to(device)
        return inpainting(masks, torch.cat(latents).float())

    def _conditioning(
        self, requests: Sequence[Request], texts: Mapping[str, Text], canvases: Mapping[str, Tensor]
    ) -> Conditioning:
        """Return what to tell the denoiser: all prompts and, where they guide, all negative prompts."""
        by_request = [request.prompts() for request in requests]
        rows = [texts[prompt] for prompts in zip(*by_request, strict=True) for prompt in prompts]
        device, copies = self.parts.device, len(rows) // len(requests)
        text = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
        guidance = torch.tensor([request.guidance for request in requests] * copies, device=device)
        control = {name: torch.cat([value] * copies) for name, value in canvases.items()}
        return Conditioning(text, guidance, _sizes(requests[0], len(rows), device), control)

    def _run(self, part: str, use: Callable[[nn.Module], Result]) -> Result:
        """Have `use` work with a part on the device, without gradients; with offload, put the part away.

        `use` must not keep the part: its memory is wanted for the next one.
        """
        module = self._module(part)
        with torch.inference_mode(), _autocast(self.parts.device, self._compute_dtype(part)):
            result = use(module)
        del module
        if self._offload:
            self._put_away(part)
        return result

    def _module(self, part: str) -> nn.Module:
        """Return the part on the device, loaded outside inference mode so that it can be trained later."""
        is_new = part not in self.parts
        module = self.parts[part]
        if is_new and self._on_load:
            self._on_load(part, module)
        return self.parts.on_device(part)

    def _put_away(self, part: str) -> None:
        if self._is_reused:
            self.parts[part].to("cpu")
            self.parts.release()
        else:
            self.parts.release(part)

    def _compute_dtype(self, part: str) -> torch.dtype:
        return self._dtypes.get(part, self._dtype)


def _sizes(request: Request, num: int, device: torch.device) -> ImageSizes:
    """Tell the model that the image is as large as asked for, and whole."""
    size = torch.tensor([[request.height, request.width]], device=device).expand(num, 2)
    return ImageSizes(original=size, crop=torch.zeros_like(size), target=size)


def _autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype)


def _image(pixels: Tensor) -> Image.Image:
    """Return pixels (1, 3, H, W) in [-1, 1] as an 8-bit RGB image."""
    values = pixels[0].float().cpu()
    if not values.isfinite().all():
        logger.warning("the image holds values that are no numbers: compute in bf16 or fp32, not in fp16")
        values = values.nan_to_num(-1.0)
    bytes_ = (values.clamp(-1, 1) + 1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy(), "RGB")
