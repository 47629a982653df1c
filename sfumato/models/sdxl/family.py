"""SDXL: a UNet that is also told how its pictures were framed, two CLIP text encoders and an autoencoder.

Both text encoders are listened to one layer before their end, without the last norm; the second also gives a
projected summary of the text (Podell et al. 2023, arXiv:2307.01952).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.config.captions import CaptionConfig
from sfumato.config.model import ModelConfig
from sfumato.config.run import Run
from sfumato.diffusion.schedules import ddpm_sigmas, leading_timesteps, sigma_at
from sfumato.models import autoencoder, checkpoint_writer, clip, text_encoders, unet
from sfumato.models.checkpoint import Checkpoint
from sfumato.models.family import (
    DENOISER,
    AdapterTarget,
    CacheFormat,
    Conditioning,
    ImageSizes,
    LatentSpace,
    ModelIdentity,
    Prediction,
    SamplingDefaults,
)
from sfumato.models.hub import located
from sfumato.models.published import Published
from sfumato.models.reading import Reader
from sfumato.models.sdxl.layout import SCALE, SDXL, TEXT_1, TEXT_2
from sfumato.models.tokenizers import Tokenizer

_BLOCKS = {
    "input_blocks": unet.Numbering("down", 1),
    "middle_block": unet.Numbering("mid", 10),
    "output_blocks": unet.Numbering("up", 13),
}
"""How blocks are counted through, 23 in all: the embeddings come first and the output last."""
_PENULTIMATE = 2
_TOKENIZERS = {
    TEXT_1: ("tokenizer", (), None),
    TEXT_2: ("tokenizer_2", ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",), "!"),
}
"""Each encoder's tokenizer: folder in diffusers' layout, names on the hub, token for padding."""


def create(run: Run) -> SdxlFamily:
    """Return the family that the run's options describe."""
    model, captions = run[ModelConfig], run[CaptionConfig]
    tokenizers = Path(model.tokenizer_cache_dir) if model.tokenizer_cache_dir else None
    return SdxlFamily(
        located(model.pretrained_model_name_or_path),
        located(model.vae),
        tokenizers,
        predicts_velocity=model.v_parameterization,
        max_token_length=captions.max_token_length,
        has_emphasis=captions.weighted_captions,
        use_mmap=not model.disable_mmap_load_safetensors,
    )


class SdxlFamily:
    """SDXL bound to its files.

    Args:
        path: a single file, or a folder in diffusers' layout.
        vae: file or folder of an autoencoder that replaces the checkpoint's own.
        tokenizers: folder in which tokenizers are kept.
        predicts_velocity: whether the UNet predicts velocity instead of noise.
        max_token_length: tokens of captions, 75, 150 or 225; None is 75.
        has_emphasis: read brackets in captions as emphasis.
        use_mmap: map files into memory instead of reading them plainly.
    """

    text_outputs: Mapping[str, tuple[str, ...]] = {
        TEXT_1: ("hidden_state1",),
        TEXT_2: ("hidden_state2", "pool2"),
    }
    caches = CacheFormat("_sdxl.npz", "_te_outputs.npz", is_scaled=False, is_sized=False, older=".npz")
    sampling = SamplingDefaults(steps=30, cfg_scale=7.5, preview_steps=30)

    def __init__(
        self,
        path: Path | None,
        vae: Path | None = None,
        tokenizers: Path | None = None,
        *,
        predicts_velocity: bool = False,
        max_token_length: int | None = None,
        has_emphasis: bool = False,
        use_mmap: bool = True,
    ) -> None:
        self.checkpoint = Checkpoint(SDXL, path, vae, use_mmap=use_mmap)
        self.prediction = Prediction.VELOCITY if predicts_velocity else Prediction.EPSILON
        shape = self.checkpoint.autoencoder_shape()
        self.latents = LatentSpace(shape.channels if shape else 4, shape.downscale if shape else 8, SCALE)
        self.identity = ModelIdentity(
            base_version="sdxl_base_v1-0",
            architecture="stable-diffusion-xl-v1-base",
            implementation="https://github.com/Stability-AI/generative-models",
            resolution=(1024, 1024),
            prediction_type="v" if predicts_velocity else "epsilon",
        )
        self._windows = clip.num_windows(max_token_length)
        self._has_emphasis = has_emphasis
        self._tokenizer_cache = tokenizers
        self._tokenizers: dict[str, Tokenizer] = {}

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if a file is missing, broken or another model."""
        self.checkpoint.check(parts)
        for part in set(parts) & set(self.text_outputs):
            self._tokenizer(part)

    def source(self, part: str) -> Path | None:
        """Return the file or folder that `part` is loaded from, or None where there is none."""
        return self.checkpoint.source(part)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        return self.checkpoint.load(part, dtype, device)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return each encoder's token ids (B, windows, 77) int64 and, with emphasis, their weights."""
        return self._read(captions, self._has_emphasis)

    def tokenize_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `tokenize` does, with brackets read as emphasis."""
        return self._read(prompts, is_weighted=True)

    def readers(self) -> dict[str, Reader]:
        """Return that both encoders read 75 tokens a window."""
        length = self._windows * clip.WINDOW
        return {name: Reader(self._tokenizer(name), length, self._has_emphasis) for name in self.text_outputs}

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return `hidden_state1` (B, 75 n + 2, 768); `hidden_state2` (.., 1280) and `pool2` (B, 1280).

        Of a text in several windows, the summary is that of the first.
        """
        outputs = {}
        for number, part in enumerate((TEXT_1, TEXT_2), start=1):
            if part in encoders:
                words = clip.Words(tokens[part], tokens.get(f"{part}_weights"))
                states, out = clip.encode(encoders[part], words, layer=_PENULTIMATE, has_norm=False)
                outputs[f"hidden_state{number}"] = states
                if part == TEXT_2:
                    outputs["pool2"] = out.text_embeds.unflatten(0, words.ids.shape[:2])[:, 0]
        return outputs

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
        words, sizes = conditioning.text, conditioning.sizes
        if sizes is None:
            raise ValueError("this model must be told how its pictures are framed: Conditioning.sizes")
        context = torch.cat([words["hidden_state1"], words["hidden_state2"].to(words["hidden_state1"])], -1)
        told = {"text_embeds": words["pool2"], "time_ids": framing(sizes).to(noisy.device)}
        return unet.predict(denoiser, noisy, timesteps, context, told)

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
            return unet.targets(model, _BLOCKS, has_published_names=True)
        owners = {TEXT_1: "te1", TEXT_2: "te2"}
        return clip.targets(model, part, owners[part]) if part in owners else iter(())

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return nothing: text caches hold the outputs alone."""
        return {}

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
            {_TOKENIZERS[part][0]: partial(self._tokenizer, part) for part in self.text_outputs},
            as_safetensors=as_safetensors,
            reference=reference,
            prediction="v_prediction" if self.prediction is Prediction.VELOCITY else "epsilon",
        )

    def _read(self, captions: Sequence[str], is_weighted: bool) -> dict[str, Tensor]:
        tokens: dict[str, Tensor] = {}
        for part in self.text_outputs:
            words = clip.read(self._tokenizer(part), captions, self._windows, is_weighted=is_weighted)
            tokens |= clip.named(words, part)
        return tokens

    def _tokenizer(self, part: str) -> Tokenizer:
        if part not in self._tokenizers:
            folder, names, pad_token = _TOKENIZERS[part]
            self._tokenizers[part] = clip.load_tokenizer(
                names,
                folder=folder,
                checkpoint=self.checkpoint.path,
                cache_dir=self._tokenizer_cache,
                pad_token=pad_token,
            )
        return self._tokenizers[part]


def framing(sizes: ImageSizes) -> Tensor:
    """Return (B, 6) float32: original height and width, top and left of the crop, target height and width."""
    return torch.cat([sizes.original, sizes.crop, sizes.target], dim=1).float()
