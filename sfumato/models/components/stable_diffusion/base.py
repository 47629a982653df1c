"""What Stable Diffusion 1, 2 and XL share: a UNet, CLIP text encoders and an autoencoder, published as one.

A family of this kind declares its layout, tokenizers and identity, and says how its encoders are listened to
and what its UNet is told.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.diffusion.schedules import ddpm_sigmas, leading_timesteps, sigma_at
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.caption_lengths import TokenizerReader
from sfumato.models.components.controlnet import controlnet
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint, Layout
from sfumato.models.components.stable_diffusion.control_nets import ControlNets
from sfumato.models.components.stable_diffusion.predicted import Predicted
from sfumato.models.components.stable_diffusion.prompt_reading import PromptReading
from sfumato.models.components.stable_diffusion.publisher import CheckpointPublisher
from sfumato.models.components.unet import unet
from sfumato.models.interface import publishing
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import CONTROLNET, DENOISER, EmphasisMean
from sfumato.models.interface.identity import ModelIdentity, SamplingDefaults
from sfumato.models.interface.latents import LatentSpace
from sfumato.models.interface.published import Published
from sfumato.models.interface.publishing import Publishing, TrainedParts
from sfumato.models.interface.tokenizers import Tokenizers

logger = logging.getLogger(__name__)

_NOISE = Predicted()


class StableDiffusion(ABC):
    """A model of this kind bound to its files.

    Args:
        path: a single file, or a folder in diffusers' layout.
        vae: file or folder of an autoencoder that replaces the checkpoint's own.
        tokenizers: folder in which tokenizers are kept.
        predicted: what the UNet predicts.
        max_token_length: tokens of captions, 75, 150 or 225; None is 75.
        has_emphasis: read brackets in captions as emphasis.
        use_mmap: map files into memory instead of reading them plainly.
        access: how tokenizers that are not here are fetched.
        inpaints: make an inpainting model of one that is none, with further input channels of zeros.
        control: file or folder of a ControlNet; without one, it is made of the UNet.
        reading: how prompts are read; None is as captions are, with emphasis.

    Attributes:
        layout: how checkpoints look.
        tokenizer_sources: of each text encoder, by its name and in order.
        tokenizers: of each text encoder; see `Tokenizers`.
        identity: what the model is, but for what its UNet predicts.
        zero_terminal: whether its files say that its noise schedule ends in pure noise.
    """

    layout: Layout
    tokenizer_sources: Mapping[str, clip.TokenizerSource]
    identity: ModelIdentity
    sampling = SamplingDefaults(steps=30, cfg_scale=7.5, preview_steps=30)

    def __init__(
        self,
        path: Path | None,
        vae: Path | None = None,
        tokenizers: Path | None = None,
        *,
        predicted: Predicted = _NOISE,
        max_token_length: int | None = None,
        has_emphasis: bool = False,
        use_mmap: bool = True,
        access: HubAccess = ANYBODY,
        inpaints: bool = False,
        control: Path | None = None,
        reading: PromptReading | None = None,
    ) -> None:
        self.checkpoint = Checkpoint(self.layout, path, vae, use_mmap=use_mmap, inpaints=inpaints)
        self._control = control
        self.predicted = predicted
        self.prediction, self.zero_terminal = predicted.kind, predicted.zero_terminal
        word = None if predicted.strangeness else "v" if predicted.is_velocity else "epsilon"
        self.identity = replace(self.identity, prediction_type=word)
        shape = self.checkpoint.autoencoder_shape()
        channels, downscale = (shape.channels, shape.downscale) if shape else (4, 8)
        self.latents = LatentSpace(channels, downscale, self.layout.scale)
        self._windows = clip.num_windows(max_token_length)
        self._has_emphasis = has_emphasis
        self._reading = reading
        self.emphasis_mean: EmphasisMean = reading.mean if reading else "original"
        place = self.checkpoint.path
        load = partial(clip.load_tokenizer, checkpoint=place, cache_dir=tokenizers, access=access)
        sources = self.tokenizer_sources.items()
        self.tokenizers = Tokenizers({part: partial(load, source) for part, source in sources})

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet is told what is masked, by its file or because it is to be; see `Inpaints`."""
        return self.checkpoint.is_inpainting

    @property
    def is_plain(self) -> bool:
        """Whether the UNet's file, if there is one, takes noisy latents alone; see `Inpaints`."""
        return self.checkpoint.is_plain

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if a file is missing, broken or another model."""
        self.checkpoint.check(parts)
        if DENOISER in parts:
            self._check_prediction()
        for part in set(parts) & set(self.tokenizers):
            self.tokenizers[part]

    def source(self, part: str) -> Path | None:
        """Return the file or folder that `part` is loaded from, or None where there is none."""
        if part == CONTROLNET:
            return self._control or self.checkpoint.source(DENOISER)
        return self.checkpoint.source(part)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        if part == CONTROLNET:
            return self.load_control(self._control, dtype, device)
        return self.checkpoint.load(part, dtype, device)

    def load_control(self, path: Path | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load a ControlNet, or make one of the UNet; see `TakesControl`."""
        return ControlNets(self.checkpoint).load(path, dtype, device)

    def predict(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Return noise or velocity, shaped like `noisy` (B, C, H/8, W/8); timesteps (B,) in [0, 1000]."""
        context, told = self.heard(conditioning)
        return unet.predict(denoiser, noisy, timesteps, context, told, conditioning.control)

    def control(
        self,
        net: nn.Module,
        image: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> dict[str, Tensor]:
        """Return what a ControlNet adds inside the UNet; see `TakesControl`."""
        return controlnet.predict(net, image, noisy, timesteps, *self.heard(conditioning))

    @abstractmethod
    def heard(self, conditioning: Conditioning) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the text that is attended to, (B, T, W), and what is told besides; see `unet.predict`."""

    def added_weights(self, net: nn.Module) -> frozenset[str]:
        """Return the names of a ControlNet's weights that the UNet has not."""
        return controlnet.added_weights(net)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return each encoder's token ids (B, windows, 77) int64 and, with emphasis, their weights."""
        return self._read(captions, self._has_emphasis)

    def tokenize_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `tokenize` does, with brackets read as emphasis; all prompts have as many windows."""
        if self._reading is not None:
            return self._reading.tokenize(self.tokenizers, prompts)
        return self._read(prompts, is_weighted=True)

    def readers(self) -> dict[str, TokenizerReader]:
        """Return that every encoder reads 75 tokens a window."""
        length = self._windows * clip.WINDOW
        return {
            part: TokenizerReader(self.tokenizers[part], length, self._has_emphasis)
            for part in self.tokenizers
        }

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return scaled latents (B, C, H/8, W/8) float32 of pixels (B, 3, H, W) in [-1, 1]."""
        return self.latents.scaled(autoencoder.encode(vae, pixels, rng))

    def decode_image(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in about [-1, 1] of scaled latents (B, C, H/8, W/8)."""
        return autoencoder.decode(vae, self.latents.raw(latents))

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        """Return (num_steps + 1,) noise levels from high to 0, relative to the clean latents."""
        levels = sigma_at(leading_timesteps(num_steps), ddpm_sigmas())
        return torch.cat([levels, levels.new_zeros(1)])

    def blocks(self, part: str, model: nn.Module) -> list[nn.Module]:
        """Return a UNet's or ControlNet's residual and transformer blocks, or a text encoder's layers."""
        found = {DENOISER: unet.blocks, CONTROLNET: controlnet.blocks}.get(part, text_encoders.layers)
        return found(model)

    @property
    def saved_as(self) -> publishing.Layout:
        """As the base lies there: in one file, or in a folder."""
        is_folder = self.checkpoint.is_folder
        return publishing.Layout.FOLDER if is_folder else publishing.Layout.WHOLE_FILE

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return nothing: text caches hold the outputs alone."""
        return {}

    def metadata(self) -> dict[str, object]:
        """Return nothing: every option that changes what the model is told is recorded for all families."""
        return {}

    @contextmanager
    def published(self, part: str) -> Iterator[Published]:
        """Open the single file or the folder that holds all parts; see `Published`."""
        models = {name: self.checkpoint.load(name, None, torch.device("cpu")) for name in self.layout.parts}
        parts = {name: publishing.tensors_of(model, is_copy=True) for name, model in models.items()}
        with self.checkpoint.file() as base:
            metadata = base.metadata if base is not None else {}
        yield Published(parts, models, metadata)

    def write(self, parts: TrainedParts, path: Path, how: Publishing) -> None:
        """Write all parts, as one file unless `how` says otherwise; those not given are the base's."""
        publishing.write(self._publisher, parts, path, how)

    def written_bytes(self, parts: TrainedParts, how: Publishing) -> int:
        """Return how much `write` would write."""
        return publishing.written_bytes(self._publisher, parts, how)

    @property
    def _publisher(self) -> CheckpointPublisher:
        load, sources = self.tokenizers.__getitem__, self.tokenizer_sources.items()
        tokenizers = {source.folder: partial(load, part) for part, source in sources}
        return CheckpointPublisher(self.checkpoint, self.predicted, tokenizers)

    def _check_prediction(self) -> None:
        """Raise UserError if the model predicts what is not known here, or not what the user says."""
        if reason := self.predicted.contradiction or self.predicted.strangeness:
            raise UserError(reason)
        if self.predicted.remark:
            logger.info(self.predicted.remark)

    def _read(self, captions: Sequence[str], is_weighted: bool) -> dict[str, Tensor]:
        tokens: dict[str, Tensor] = {}
        for part in self.tokenizers:
            texts = self._texts_for(part, captions)
            words = clip.read(self.tokenizers[part], texts, self._windows, is_weighted=is_weighted)
            tokens |= clip.named(words, part)
        return tokens

    def _texts_for(self, part: str, captions: Sequence[str]) -> Sequence[str]:
        """Return what a text encoder reads of captions; a family may let one read something else."""
        return captions
