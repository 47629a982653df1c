"""Stable Diffusion 3 and 3.5: one rectified-flow transformer, CLIP-L, CLIP-G, T5-XXL and an autoencoder.

The transformers of version 3, 3.5 large and 3.5 medium differ in their tensors alone. The model works without
T5, with zeros in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.diffusion.flow_training import FlowTraining
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess, access_for
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.caption_lengths import TokenizerReader
from sfumato.models.components.dit.targets import joined, t5_targets
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.tokenizers import CLIP_LENGTH
from sfumato.models.families.sd3 import dropout, schedule, targets, text
from sfumato.models.families.sd3.dropout import TextDropout
from sfumato.models.families.sd3.files import LATENT_SCALE, LATENT_SHIFT, PARTS, Sd3Files
from sfumato.models.families.sd3.network import MMDiT
from sfumato.models.families.sd3.options import Sd3EncoderOptions, Sd3NoiseOptions, Sd3Options
from sfumato.models.families.sd3.positions import PATCH, ScaledPositions, random_corner, sides_of
from sfumato.models.families.sd3.text import CLIP_G, CLIP_L, T5XXL
from sfumato.models.families.sd3.writing.publisher import Sd3Publisher
from sfumato.models.interface import publishing
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER, EncoderUse, Prediction
from sfumato.models.interface.identity import ModelIdentity, SamplingDefaults
from sfumato.models.interface.latents import CacheFormat, JoinedOutputs, LatentSpace
from sfumato.models.interface.published import Published
from sfumato.models.interface.publishing import Publishing, TrainedParts
from sfumato.models.interface.targets import AdapterTarget, others
from sfumato.nn.device import device_named
from sfumato.nn.precision import compute_dtype, dtype_named

logger = logging.getLogger(__name__)

_T5_LENGTH = 256
_CLIP_L_WIDTH = 768
_OWNERS = {CLIP_L: "te1", CLIP_G: "te2", T5XXL: "te3"}
"""What files put before the layers of each text encoder."""


def create(run: Run) -> Sd3Family:
    """Return the family that the run's options describe."""
    model, values = run.get(ModelConfig, ModelConfig()), run.values()
    files = {part: run.file(part, spec.option) for part, spec in PARTS.items()}
    tokenizers, options = values.get("tokenizer_cache_dir"), run.get(Sd3Options, Sd3Options())
    noise = run.get(Sd3NoiseOptions, Sd3NoiseOptions())
    if Sd3NoiseOptions in run:
        logger.info(_SCHEDULES[noise.sd3_schedule])
    return Sd3Family(
        {part: file.path for part, file in files.items()},
        Path(tokenizers) if tokenizers else None,
        t5_max_length=values.get("t5xxl_max_token_length") or values.get("t5xxl_token_length"),
        masked=[part for part, option in _MASKS.items() if values.get(option)],
        has_t5=not values.get("do_not_use_t5xxl"),
        text_dropout=TextDropout(
            options.clip_l_dropout_rate, options.clip_g_dropout_rate, options.t5_dropout_rate
        ),
        crop_rate=options.pos_emb_random_crop_rate,
        scales_positions=options.enable_scaled_pos_embed,
        flow_training=_flow_training(noise),
        encoder_use=_encoder_use(run, options),
        included=_included(options) if Sd3Options in run else None,
        use_mmap=not model.disable_mmap_load_safetensors,
        denoiser_option=files[DENOISER].option,
        access=access_for(run),
    )


_SCHEDULES = {
    "2024": "--sd3_schedule 2024: a large number drawn is little noise, and the shift is 3",
    "2026": "--sd3_schedule 2026: a large number drawn is much noise, and --training_shift is the shift",
}
_MASKS = {CLIP_L: "apply_lg_attn_mask", CLIP_G: "apply_lg_attn_mask", T5XXL: "apply_t5_attn_mask"}
"""The option that hides padding from each text encoder."""


def _flow_training(options: Sd3NoiseOptions) -> FlowTraining:
    is_newer = options.sd3_schedule == "2026"
    newer = partial(schedule.levels_2026, factor=options.training_shift)
    return FlowTraining(
        newer if is_newer else schedule.levels_2024,
        options.weighting_scheme,
        options.logit_mean,
        options.logit_std,
        options.mode_scale,
    )


def _encoder_use(run: Run, options: Sd3Options) -> EncoderUse:
    own = run.get(Sd3EncoderOptions, Sd3EncoderOptions())
    dtype, device = options.t5xxl_dtype, options.t5xxl_device
    return EncoderUse(
        trained=[CLIP_L, CLIP_G, *([T5XXL] if own.train_t5xxl else [])],
        cached=[T5XXL] if own.use_t5xxl_cache_only else None,
        dtypes={T5XXL: dtype_named(dtype, "--t5xxl_dtype")} if dtype else {},
        devices={T5XXL: device_named(device, "--t5xxl_device")} if device else {},
    )


def _included(options: Sd3Options) -> list[str]:
    """Return the text encoders that a model's file is to hold."""
    clips = [CLIP_L, CLIP_G] if options.save_clip else []
    return [*clips, *([T5XXL] if options.save_t5xxl else [])]


_USUAL_USE = EncoderUse()
_USUAL_TRAINING = _flow_training(Sd3NoiseOptions())
_NO_DROPOUT = TextDropout()


class Sd3Family:
    """Stable Diffusion 3 or 3.5 bound to its files.

    Args:
        files: file or folder of each part, where one is given. The denoiser's may hold other parts, too.
        tokenizers: folder in which tokenizers are kept; None leaves those beside the base and the hub's.
        t5_max_length: length of captions in tokens for T5; None takes 256.
        masked: text encoders that do not see the padding behind captions.
        has_t5: whether T5 is used where there is one.
        text_dropout: what is left out of captions in training.
        crop_rate: share of training steps in which an image lies anywhere in the table of positions.
        scales_positions: whether tables of positions are scaled to the sizes of images.
        flow_training: noise levels of training.
        encoder_use: what becomes of single text encoders in training.
        included: text encoders that whole files hold; see `Sd3Publisher`.
        use_mmap: map files into memory instead of reading them plainly.
        denoiser_option: the command-line option that named the denoiser, for messages.
        access: how the hub is reached, where paths are names on it.
    """

    prediction = Prediction.FLOW
    word_keys: Mapping[str, str] = {CLIP_L: "clip_l", CLIP_G: "clip_g"}
    saved_as = publishing.Layout.WHOLE_FILE
    sampling = SamplingDefaults(steps=50, cfg_scale=5.0, preview_steps=30)

    def __init__(
        self,
        files: Mapping[str, Path | None],
        tokenizers: Path | None = None,
        *,
        t5_max_length: int | None = None,
        masked: Sequence[str] = (),
        has_t5: bool = True,
        text_dropout: TextDropout = _NO_DROPOUT,
        crop_rate: float = 0.0,
        scales_positions: bool = False,
        flow_training: FlowTraining = _USUAL_TRAINING,
        encoder_use: EncoderUse = _USUAL_USE,
        included: Collection[str] | None = None,
        use_mmap: bool = True,
        denoiser_option: str = PARTS[DENOISER].option,
        access: HubAccess = ANYBODY,
    ) -> None:
        given = {part: files.get(part) for part in PARTS}
        self._files = Sd3Files(given, use_mmap=use_mmap, denoiser_option=denoiser_option, access=access)
        self._included = included or ()
        base = given[DENOISER]
        has_t5 = has_t5 and (base is None or self._files.parts.source(T5XXL) is not None)
        self.text_outputs = {part: text.OUTPUTS[part] for part in _OWNERS if has_t5 or part != T5XXL}
        self.tokenizers = text.tokenizers(tokenizers, base, list(self.text_outputs), access)
        self._publisher = Sd3Publisher(self._files, included, self.tokenizers)
        self.t5_max_length = t5_max_length or _T5_LENGTH
        self.flow_training = flow_training
        self.encoder_use = encoder_use
        self._masked = masked
        self._text_dropout = text_dropout
        self._crop_rate = crop_rate
        self._scales_positions = scales_positions
        self._resolutions: tuple[tuple[int, int], ...] = ()
        shape = self._files.parts.autoencoder_shape()
        channels, downscale = (shape.channels, shape.downscale) if shape else (16, 8)
        self.latents = LatentSpace(channels, downscale, LATENT_SCALE, LATENT_SHIFT, PATCH)
        self.caches = CacheFormat("_sd3.npz", "_sd3_te.npz", is_scaled=False, joined=self._joined_outputs())
        self.identity = _identity(self._files)

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if one is missing, broken or another model."""
        self._files.check(parts)
        self._check_positions()
        if T5XXL not in self.text_outputs:
            self._check_without_t5()
        for part in set(parts) & set(self.tokenizers):
            self.tokenizers[part]

    def source(self, part: str) -> Path | None:
        """Return the file or folder that `part` is loaded from, or None where there is none."""
        return self._files.parts.source(part)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        model = self._files.load(part, dtype, device)
        if part == DENOISER and self._scales_positions and self._resolutions:
            transformer = cast(MMDiT, model)
            tables = ScaledPositions(sides_of(self._resolutions), transformer.shape.hidden_size)
            transformer.scaled_positions = tables.to(device)
        return model

    def _check_without_t5(self) -> None:
        """Raise UserError if T5 is to be trained or saved; warn where options are about its use."""
        use = self.encoder_use
        if T5XXL in self._included:
            raise UserError("--save_t5xxl: there is no T5-XXL to save; give --t5xxl, or leave it out")
        if T5XXL in (use.trained or ()):
            raise UserError("--train_t5xxl: there is no T5-XXL to train; give --t5xxl, or leave it out")
        about = {"use_t5xxl_cache_only": use.cached, "t5xxl_dtype": use.dtypes, "t5xxl_device": use.devices}
        for option in (option for option, named in about.items() if T5XXL in (named or ())):
            logger.warning("--%s has no effect: there is no T5-XXL; give --t5xxl, or leave it out", option)

    def _check_positions(self) -> None:
        """Warn where positions are to be scaled for a model that was trained on its own table alone."""
        shape = self._files.shape()
        if self._scales_positions and shape and shape.variant != "5-medium":
            logger.warning(
                "--enable_scaled_pos_embed is meant for Stable Diffusion 3.5 medium; this is %s, which other "
                "programs use with its own table: leave the option out, unless you mean to train it anew",
                self.identity.base_version,
            )

    def take_resolutions(self, resolutions: Sequence[tuple[int, int]]) -> None:
        """Take note of the sizes in pixels that positions are scaled to, where that is asked for."""
        self._resolutions = tuple(resolutions)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return each text encoder's token ids, (B, L) int64, by its name; masks as `<name>_mask`."""
        return text.tokenize(self.tokenizers, captions, self.t5_max_length)

    def readers(self) -> dict[str, TokenizerReader]:
        """Return that the CLIPs read one window, and T5 as many tokens as it is set to, less an end."""
        lengths = {CLIP_L: CLIP_LENGTH - 2, CLIP_G: CLIP_LENGTH - 2, T5XXL: self.t5_max_length - 1}
        return {part: TokenizerReader(self.tokenizers[part], lengths[part]) for part in self.tokenizers}

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return the outputs of those encoders that are given; see `text.encode`."""
        return text.encode(encoders, tokens, self._masked)

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return scaled latents (B, C, H/8, W/8) float32 of pixels (B, 3, H, W) in [-1, 1]."""
        return self.latents.scaled(autoencoder.encode(vae, pixels, rng))

    def decode_image(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in about [-1, 1] of scaled latents (B, C, H/8, W/8)."""
        return autoencoder.decode(vae, self.latents.raw(latents))

    def predict(
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Return the velocity, shaped like `noisy` (B, C, H/8, W/8); timesteps (B,) in [0, 1000]."""
        dtype = compute_dtype(denoiser, noisy.device)
        words = conditioning.text
        if rng is not None:
            words = dropout.drop(words, self._text_dropout, rng)
        transformer = cast(MMDiT, denoiser)
        context, pooled = text.context(words, transformer.shape.text_width), text.pooled(words)
        height, width = noisy.shape[-2:]
        side = len(transformer.table(height // PATCH, width // PATCH))
        corner = random_corner((height, width), side, self._crop_rate, rng)
        velocity = denoiser(noisy.to(dtype), timesteps, context.to(dtype), pooled.to(dtype), corner)
        return velocity.to(noisy.dtype)

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        """Return (num_steps + 1,) noise levels from 1 to 0, whatever the size of the image."""
        return schedule.sampling_sigmas(num_steps)

    def blocks(self, part: str, model: nn.Module) -> list[nn.Module]:
        """Return the joint blocks; of a text encoder, its layers."""
        return [*cast(MMDiT, model).joint_blocks] if part == DENOISER else text_encoders.layers(model)

    def weights_in_use(self, part: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return all weights: pooled outputs depend on the CLIPs' last layers, too."""
        return dict(model.named_parameters())

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return which encoders saw the masks."""
        return {
            "apply_lg_attn_mask": torch.tensor(CLIP_L in self._masked),
            "apply_t5_attn_mask": torch.tensor(T5XXL in self._masked),
        }

    def metadata(self) -> dict[str, object]:
        """Return the options that change what the model is told, and how noise levels are drawn."""
        training = self.flow_training
        return {
            "ss_apply_lg_attn_mask": CLIP_L in self._masked,
            "ss_apply_t5_attn_mask": T5XXL in self._masked,
            "ss_weighting_scheme": training.scheme,
            "ss_logit_mean": training.logit_mean,
            "ss_logit_std": training.logit_std,
            "ss_mode_scale": training.mode_scale,
        }

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of `model` that adapters know, in the order in which files list them."""
        if part == DENOISER:
            return targets.denoiser_targets(cast(MMDiT, model))
        if part == T5XXL:
            return t5_targets(model, part, _OWNERS[part])
        return clip.targets(model, part, _OWNERS[part]) if part in _OWNERS else iter(())

    def further_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers that no adapter of ours is trained on; see `HasFurtherTargets`."""
        if part in (CLIP_L, CLIP_G):
            return clip.further_targets(model, part, _OWNERS[part])
        owner = {DENOISER: "unet", T5XXL: _OWNERS[T5XXL]}.get(part)
        known = [target.module for target in self.adapter_targets(part, model)]
        return others(model, known, part, partial(joined, owner)) if owner else iter(())

    def published(self, part: str) -> AbstractContextManager[Published]:
        """Open a part of the base; see `Published`."""
        return self._files.published(part)

    def write(self, parts: TrainedParts, path: Path, how: Publishing) -> None:
        """Write the denoiser and the autoencoder as one file, unless `how` says otherwise."""
        publishing.write(self._publisher, parts, path, how)

    def written_bytes(self, parts: TrainedParts, how: Publishing) -> int:
        """Return how much `write` would write."""
        return publishing.written_bytes(self._publisher, parts, how)

    def _joined_outputs(self) -> tuple[JoinedOutputs, ...]:
        """Return which outputs of the CLIPs lie side by side in cache files."""
        width = self._files.width_of(CLIP_L) or _CLIP_L_WIDTH
        return tuple(
            JoinedOutputs(f"lg_{what}", (f"l_{what}", f"g_{what}"), width) for what in ("out", "pooled")
        )


def _identity(files: Sd3Files) -> ModelIdentity:
    shape = files.shape()
    variant = shape.variant if shape else "medium"
    number, _, size = f"sd3-{variant}".replace("-5-", ".5-").partition("-")
    return ModelIdentity(
        base_version=f"{number}_{size}",
        architecture=f"stable-diffusion-3-{variant}",
        implementation="https://github.com/Stability-AI/generative-models",
        resolution=(1024, 1024),
        prediction_type="epsilon",  # as sd-scripts writes it
        adapter_implementation="diffusers",
        records_all_text_rates=True,
    )
