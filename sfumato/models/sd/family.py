"""Stable Diffusion 1 and 2: a UNet, one CLIP text encoder and an autoencoder.

Version 2 has another text encoder, of which the last layer is left out, and its 768-pixel model predicts
velocity instead of noise (Salimans and Ho 2022, arXiv:2202.00512).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.checkpoints.tensors import open_tensors
from sfumato.config.captions import CaptionConfig
from sfumato.config.model import ModelConfig
from sfumato.config.run import Run
from sfumato.diffusion.schedules import ddpm_sigmas, leading_timesteps, sigma_at
from sfumato.errors import UserError
from sfumato.models import autoencoder, checkpoint_writer, clip, text_encoders, unet
from sfumato.models.checkpoint import OPTION, Checkpoint
from sfumato.models.family import (
    DENOISER,
    AdapterTarget,
    CacheFormat,
    Conditioning,
    LatentSpace,
    ModelIdentity,
    Prediction,
    SamplingDefaults,
)
from sfumato.models.hub import located
from sfumato.models.published import Published
from sfumato.models.reading import Reader
from sfumato.models.sd.layouts import SCALE, SD1, SD2, TEXT, is_version_2
from sfumato.models.tokenizers import Tokenizer
from sfumato.models.views import view_of

_BLOCKS = {
    "input_blocks": unet.Numbering("down", 0),
    "middle_block": unet.Numbering("mid", 12, is_one=True),
    "output_blocks": unet.Numbering("up", 13),
}
"""How blocks are counted through, 25 in all."""
_TOKENIZER_2 = "stabilityai/stable-diffusion-2"


def create(run: Run) -> SdFamily:
    """Return the family that the run's options describe."""
    model, captions = run[ModelConfig], run[CaptionConfig]
    tokenizers = Path(model.tokenizer_cache_dir) if model.tokenizer_cache_dir else None
    return SdFamily(
        located(model.pretrained_model_name_or_path),
        located(model.vae),
        tokenizers,
        is_v2=model.v2,
        predicts_velocity=model.v_parameterization,
        clip_skip=model.clip_skip,
        max_token_length=captions.max_token_length,
        has_emphasis=captions.weighted_captions,
        use_mmap=not model.disable_mmap_load_safetensors,
    )


class SdFamily:
    """Stable Diffusion 1 or 2 bound to its files.

    Args:
        path: a single file, or a folder in diffusers' layout.
        vae: file or folder of an autoencoder that replaces the checkpoint's own.
        tokenizers: folder in which tokenizers are kept.
        is_v2: whether the user says that it is version 2; `check` compares.
        predicts_velocity: whether the UNet predicts velocity instead of noise.
        clip_skip: layer of the text encoder that is listened to, counted from the last; None is the last.
        max_token_length: tokens of captions, 75, 150 or 225; None is 75.
        has_emphasis: read brackets in captions as emphasis.
        use_mmap: map files into memory instead of reading them plainly.
    """

    text_outputs: Mapping[str, tuple[str, ...]] = {TEXT: ("hidden_state",)}
    caches = CacheFormat("_sd.npz", "_sd_te.npz", is_scaled=False, is_sized=False, older=".npz")
    sampling = SamplingDefaults(steps=30, cfg_scale=7.5, preview_steps=30)

    def __init__(
        self,
        path: Path | None,
        vae: Path | None = None,
        tokenizers: Path | None = None,
        *,
        is_v2: bool = False,
        predicts_velocity: bool = False,
        clip_skip: int | None = None,
        max_token_length: int | None = None,
        has_emphasis: bool = False,
        use_mmap: bool = True,
    ) -> None:
        self.checkpoint = Checkpoint(SD2 if is_v2 else SD1, path, vae, use_mmap=use_mmap)
        self.is_v2 = is_v2
        self.prediction = Prediction.VELOCITY if predicts_velocity else Prediction.EPSILON
        self.latents = _latent_space(self.checkpoint)
        self.identity = _identity(is_v2, predicts_velocity)
        self._layer = clip_skip or 1
        self._windows = clip.num_windows(max_token_length)
        self._has_emphasis = has_emphasis
        self._tokenizer_cache = tokenizers
        self._tokenizer: Tokenizer | None = None

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if a file is missing, broken or another model."""
        self._check_version()
        self.checkpoint.check(parts)
        if TEXT in parts:
            self._load_tokenizer()

    def source(self, part: str) -> Path | None:
        """Return the file or folder that `part` is loaded from, or None where there is none."""
        return self.checkpoint.source(part)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        return self.checkpoint.load(part, dtype, device)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return token ids (B, windows, 77) int64 and, with emphasis, weights of that shape."""
        return self._read(captions, self._has_emphasis)

    def tokenize_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `tokenize` does, with brackets read as emphasis."""
        return self._read(prompts, is_weighted=True)

    def readers(self) -> dict[str, Reader]:
        """Return that the encoder reads 75 tokens a window."""
        return {TEXT: Reader(self._load_tokenizer(), self._windows * clip.WINDOW, self._has_emphasis)}

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return `hidden_state` (B, 75 n + 2, W), normalised."""
        if TEXT not in encoders:
            return {}
        words = clip.Words(tokens[TEXT], tokens.get(f"{TEXT}_weights"))
        return {"hidden_state": clip.encode(encoders[TEXT], words, layer=self._layer)[0]}

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return scaled latents (B, C, H/8, W/8) float32 of pixels (B, 3, H, W) in [-1, 1]."""
        return self.latents.scaled(autoencoder.encode(vae, pixels, rng))

    def decode_image(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in about [-1, 1] of scaled latents (B, C, H/8, W/8)."""
        return autoencoder.decode(vae, self.latents.raw(latents))

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return noise or velocity, shaped like `noisy` (B, C, H/8, W/8); timesteps (B,) in [0, 1000]."""
        return unet.predict(denoiser, noisy, timesteps, conditioning.text["hidden_state"])

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        """Return (num_steps + 1,) noise levels from high to 0, relative to the clean latents."""
        levels = sigma_at(leading_timesteps(num_steps), ddpm_sigmas())
        return torch.cat([levels, levels.new_zeros(1)])

    def blocks(self, part: str, model: nn.Module) -> list[nn.Module]:
        """Return the UNet's residual and transformer blocks, or a text encoder's layers."""
        return unet.blocks(model) if part == DENOISER else text_encoders.layers(model)

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of `model` that adapters know, in the order in which files list them."""
        if part == DENOISER:
            return unet.targets(model, _BLOCKS, has_published_names=False)
        return clip.targets(model, part, "te") if part == TEXT else iter(())

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return the layer that is listened to."""
        return {"clip_skip": torch.tensor(self._layer)}

    def metadata(self) -> dict[str, object]:
        """Return nothing: every option that changes what the model is told is recorded for all families."""
        return {}

    def save(
        self, part: str, model: nn.Module, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        """Write one part under its published names."""
        checkpoint_writer.save_part(self.checkpoint.layout.parts[part], model, path, dtype, metadata)

    def published(self, part: str) -> AbstractContextManager[Published]:
        """Open the single file that holds all parts, or that the folder makes; see `Published`."""
        return checkpoint_writer.published(self.checkpoint)

    def save_checkpoint(
        self,
        path: Path,
        parts: Mapping[str, nn.Module],
        dtype: torch.dtype | None,
        metadata: Mapping[str, str],
        *,
        epoch: int = 0,
        step: int = 0,
    ) -> None:
        """Write all parts as one file, safetensors or .ckpt; parts that are not given come from the base."""
        checkpoint_writer.save_file(path, self.checkpoint, parts, dtype, metadata, epoch=epoch, step=step)

    def save_folder(
        self,
        folder: Path,
        parts: Mapping[str, nn.Module],
        dtype: torch.dtype | None,
        *,
        as_safetensors: bool = True,
        reference: Path | None = None,
    ) -> None:
        """Write all parts as a folder in diffusers' layout; parts that are not given come from the base.

        Args:
            reference: folder in that layout whose scheduler and tokenizers are copied.
        """
        checkpoint_writer.save_folder(
            folder,
            self.checkpoint,
            parts,
            dtype,
            {"tokenizer": self._load_tokenizer},
            as_safetensors=as_safetensors,
            reference=reference,
            prediction="v_prediction" if self.prediction is Prediction.VELOCITY else "epsilon",
        )

    def _read(self, captions: Sequence[str], is_weighted: bool) -> dict[str, Tensor]:
        words = clip.read(self._load_tokenizer(), captions, self._windows, is_weighted=is_weighted)
        return clip.named(words, TEXT)

    def _load_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = clip.load_tokenizer(
                (_TOKENIZER_2,) if self.is_v2 else (),
                folder="tokenizer",
                checkpoint=self.checkpoint.path,
                cache_dir=self._tokenizer_cache,
                pad_token="!" if self.is_v2 else None,
            )
        return self._tokenizer

    def _check_version(self) -> None:
        """Raise UserError if `--v2` says something else than the file."""
        path = self.checkpoint.source(DENOISER)
        if path is None or not path.exists():
            return
        with open_tensors(path, use_mmap=self.checkpoint.use_mmap) as file:
            shapes = view_of(file).shapes
        projection = next((shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")), None)
        is_sd = any(name.startswith(("cond_stage_model.", "time_embedding.")) for name in shapes)
        if projection is None or not is_sd or "add_embedding.linear_1.weight" in shapes:
            return
        is_v2 = any(name.startswith("cond_stage_model.model.") for name in shapes)
        if self.checkpoint.is_folder and self.checkpoint.path is not None:
            is_v2 = is_version_2(self.checkpoint.path, shapes)
        if is_v2 != self.is_v2:
            what, remedy = (SD2.what, "add --v2") if is_v2 else (SD1.what, "leave out --v2")
            raise UserError(f"--{OPTION} is {self.checkpoint.path}: it seems to be {what}; {remedy}")


def _latent_space(checkpoint: Checkpoint) -> LatentSpace:
    shape = checkpoint.autoencoder_shape()
    channels, downscale = (shape.channels, shape.downscale) if shape else (4, 8)
    return LatentSpace(channels, downscale, SCALE)


def _identity(is_v2: bool, predicts_velocity: bool) -> ModelIdentity:
    size = 768 if is_v2 and predicts_velocity else 512
    version_2 = "stable-diffusion-v2-768-v" if predicts_velocity else "stable-diffusion-v2-512"
    return ModelIdentity(
        base_version=("sd_v2" if is_v2 else "sd_v1") + ("_v" if predicts_velocity else ""),
        architecture=version_2 if is_v2 else "stable-diffusion-v1",
        implementation="diffusers",
        resolution=(size, size),
        prediction_type="v" if predicts_velocity else "epsilon",
    )
