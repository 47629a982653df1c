"""Images from Python: one family's model, adapters at work on it, and any number of prompts.

generator = Generator(family, adapters=[AdapterFile(Path("cat.safetensors"), 0.8)])
first, second = generator("a red cat", num_images=2, seed=1, steps=20)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from sfumato.adapters.words.vocabulary import Vocabulary, learned_word
from sfumato.diffusion.samplers import OnStep
from sfumato.models.components import autoencoder
from sfumato.models.interface.family import DENOISER, VAE, Family, ends_in_pure_noise
from sfumato.models.interface.parts import Parts
from sfumato.nn.device import default_device
from sfumato.sampling import sampler_names
from sfumato.sampling.effects.regions.regions import Regions
from sfumato.sampling.formats import AskedDtype, Formats, formats_for
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request, batches, random_seed

_GENERAL = AskedDtype(torch.bfloat16, "the dtype")


class Generator:
    """Makes images of prompts; parts are loaded when the first image needs them.

    Args:
        family: bound to the model's files.
        adapters: files with the strengths at which they act; all are read at once.
        embeddings: files of new words, each for the word that it is named after.
        device: the fastest of this machine where None.
        formats: dtypes of the parts, as `formats_for` returns them; bfloat16 where None.
        offload: keep only the part at work on the device.
        is_reused: with `offload`, let parts wait in RAM for the next image instead of reading them anew.
        is_merged: write the adapters' changes into the weights: quicker steps, strengths stay as they are.
        vae_batch_size: images that are encoded and decoded at once.
        vae_tiling: encode and decode large images in tiles.

    Attributes:
        pipeline: makes images of requests that say everything.
        adapters: the adapters at work, whose strengths can be set.

    Raises:
        UserError: a file is missing, broken or for another model; no weight has been loaded then.
    """

    def __init__(
        self,
        family: Family,
        *,
        adapters: Sequence[AdapterFile] = (),
        embeddings: Sequence[Path] = (),
        device: torch.device | None = None,
        formats: Formats | None = None,
        offload: bool = False,
        is_reused: bool = True,
        is_merged: bool = False,
        vae_batch_size: int = 1,
        vae_tiling: bool = False,
    ) -> None:
        self.family = family
        device, parts = device or default_device(), parts_of(family)
        formats = formats or formats_for(parts, device, _GENERAL)
        dtype = formats.computed[DENOISER]
        family.check(parts)
        self.adapters = Attachments(family, adapters, dtype=dtype, is_merged=is_merged)
        self.adapters.check()
        learned = [learned_word(path, family) for path in embeddings]
        vocabulary = Vocabulary(family, [*learned, *self.adapters.words])
        self.pipeline = Pipeline(
            family,
            Parts(family, device, formats.stored, change=vocabulary),
            dtype=dtype,
            dtypes=formats.computed,
            offload=offload,
            is_reused=is_reused,
            on_load=self._prepare,
            zero_terminal=ends_in_pure_noise(family),
            effects=[self.adapters.spans],
            vae_batch_size=vae_batch_size,
            pastes=True,
            regions=Regions(self.adapters),
        )
        self._vae_tiling = vae_tiling

    def _prepare(self, part: str, module: nn.Module) -> None:
        """Make a part ready that has just been loaded."""
        self.adapters(part, module)
        if part == VAE and self._vae_tiling:
            autoencoder.use_tiles(module)

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        num_images: int = 1,
        seed: int | None = None,
        batch_size: int = 1,
        **settings: Any,
    ) -> list[Image.Image]:
        """Make images, those of one prompt beside each other.

        Args:
            prompt: one or several.
            num_images: of each prompt.
            seed: of each prompt's first image, and one more for each that follows; drawn where None.
            batch_size: images made at once: more are quicker, and take more VRAM.
            settings: fields of `Request`; what suits the family where they are not given.

        Raises:
            UserError: there is no such sampler, or a setting is out of range.
            TypeError: `Request` has no such field.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        first = random_seed() if seed is None else seed
        return self.make(
            [
                self.request(text, seed=first + number, **settings)
                for text in prompts
                for number in range(num_images)
            ],
            batch_size,
        )

    def request(self, prompt: str, **settings: Any) -> Request:
        """Return what an image is made of, completed by what suits the family."""
        usual, (width, height) = self.family.sampling, self.family.identity.resolution
        suiting = {
            "width": width,
            "height": height,
            "steps": usual.steps,
            "guidance": usual.guidance,
            "cfg_scale": usual.cfg_scale,
            "sampler": sampler_names.PREFERRED[self.family.prediction],
        }
        return Request(prompt, **(suiting | settings))

    def make(self, requests: Sequence[Request], batch_size: int = 1) -> list[Image.Image]:
        """Make an image of each request, in their order; what can share a batch does."""
        images = dict(self.each(requests, batch_size))
        return [images[place] for place in range(len(requests))]

    def each(
        self, requests: Sequence[Request], batch_size: int = 1, on_step: OnStep | None = None
    ) -> Iterator[tuple[int, Image.Image]]:
        """Yield images as they are made, each with the place of its request.

        A text is encoded once for all requests with the same strengths of adapters, which may act on it.

        Args:
            on_step: called after each step of a batch with its index and the latents.
        """
        fitting = [self.pipeline.fit(request) for request in requests]
        for strengths in dict.fromkeys(request.multipliers for request in fitting):
            same = [place for place, request in enumerate(fitting) if request.multipliers == strengths]
            with self.adapters.at(strengths):
                for batch, made in self._batches([fitting[place] for place in same], batch_size, on_step):
                    yield from zip([same[index] for index in batch], made, strict=True)

    def _batches(
        self, requests: Sequence[Request], batch_size: int, on_step: OnStep | None
    ) -> Iterator[tuple[list[int], list[Image.Image]]]:
        """Yield the places of requests that share a batch, and their images."""
        texts = self.pipeline.encode(text for request in requests for text in request.prompts())
        for places in batches(requests, batch_size):
            yield places, self.pipeline.batch([requests[place] for place in places], texts, on_step)


def parts_of(family: Family) -> list[str]:
    """Return the names of all parts that make an image."""
    return [*family.text_outputs, DENOISER, VAE]
