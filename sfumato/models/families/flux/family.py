"""FLUX.1, dev and schnell: one rectified-flow transformer, CLIP-L, T5-XXL and an autoencoder.

The two variants differ in their tensors alone: dev was distilled to take a guidance scale, and samples with
noise levels shifted by image size; schnell does neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.diffusion.schedules import flow_sigmas, shift_exponent
from sfumato.hub.access import ANYBODY, HubAccess, access_for
from sfumato.hub.fetching import located
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.caption_lengths import TokenizerReader
from sfumato.models.components.controlnet.control_kinds import OPTION
from sfumato.models.components.dit.targets import t5_targets
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.tokenizers import CLIP_LENGTH
from sfumato.models.families.flux import controlnet, targets, text
from sfumato.models.families.flux.controlnet import FluxControlNet
from sfumato.models.families.flux.files import CLIP_L, PARTS, T5XXL, FluxFiles
from sfumato.models.families.flux.network import Flux
from sfumato.models.families.flux.packing import PATCH, image_ids, pack, unpack
from sfumato.models.families.flux.publisher import FluxPublisher
from sfumato.models.interface import publishing
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import CONTROLNET, DENOISER, VAE, Prediction
from sfumato.models.interface.identity import ModelIdentity, SamplingDefaults
from sfumato.models.interface.latents import CacheFormat, LatentSpace
from sfumato.models.interface.published import Published
from sfumato.models.interface.publishing import Layout, Publishing, TrainedParts
from sfumato.models.interface.targets import AdapterTarget
from sfumato.nn.precision import compute_dtype

_SCALE, _SHIFT = 0.3611, 0.1159
_T5_LENGTHS = {"dev": 512, "schnell": 256}


def create(run: Run) -> FluxFamily:
    """Return the family that the run's options describe."""
    model, values = run.get(ModelConfig, ModelConfig()), run.values()
    files = {part: run.file(part, spec.option) for part, spec in PARTS.items()}
    return FluxFamily(
        files[DENOISER].path,
        files[CLIP_L].path,
        files[T5XXL].path,
        files[VAE].path,
        Path(model.tokenizer_cache_dir) if model.tokenizer_cache_dir else None,
        t5_max_length=values.get("t5xxl_max_token_length"),
        apply_t5_mask=values.get("apply_t5_attn_mask", False),
        use_mmap=not model.disable_mmap_load_safetensors,
        denoiser_option=files[DENOISER].option,
        access=access_for(run),
        control=located(values.get(OPTION), f"--{OPTION}", access=access_for(run)),
    )


class FluxFamily:
    """FLUX.1 bound to its files.

    Args:
        transformer: the denoiser's file; or a folder in diffusers' layout, where other files are found too.
        clip_l, t5xxl, ae: files or folders of the other parts.
        tokenizers: folder in which tokenizers are kept; None leaves those beside the denoiser and the hub's.
        t5_max_length: length of captions in tokens; None takes 512 for dev and 256 for schnell.
        apply_t5_mask: hide the padding behind captions from T5 and from the denoiser.
        use_mmap: map files into memory instead of reading them plainly.
        denoiser_option: the command-line option that named `transformer`, for messages.
        access: how the hub is reached, where paths are names on it.
    """

    prediction = Prediction.FLOW
    text_outputs: Mapping[str, tuple[str, ...]] = {CLIP_L: ("l_pooled",), T5XXL: ("t5_out", "t5_attn_mask")}
    word_keys: Mapping[str, str] = {CLIP_L: "clip_l"}
    caches = CacheFormat("_flux.npz", "_flux_te.npz")
    saved_as = Layout.PART_FILES

    def __init__(
        self,
        transformer: Path | None,
        clip_l: Path | None = None,
        t5xxl: Path | None = None,
        ae: Path | None = None,
        tokenizers: Path | None = None,
        *,
        t5_max_length: int | None = None,
        apply_t5_mask: bool = False,
        use_mmap: bool = True,
        denoiser_option: str = PARTS[DENOISER].option,
        access: HubAccess = ANYBODY,
        control: Path | None = None,
    ) -> None:
        given = {DENOISER: transformer, CLIP_L: clip_l, T5XXL: t5xxl, VAE: ae}
        self._files = FluxFiles(given, use_mmap=use_mmap, denoiser_option=denoiser_option, access=access)
        self._control = control
        self._publisher = FluxPublisher(self._files)
        self.tokenizers = text.tokenizers(tokenizers, _bundled_tokenizers(transformer), access)
        self.apply_t5_mask = apply_t5_mask
        self.variant = "dev" if self._files.takes_guidance() else "schnell"
        self.t5_max_length = t5_max_length or _T5_LENGTHS[self.variant]
        shape = self._files.parts.autoencoder_shape()
        channels, downscale = (shape.channels, shape.downscale) if shape else (16, 8)
        self.latents = LatentSpace(channels, downscale, _SCALE, _SHIFT, PATCH)
        self.identity = ModelIdentity(
            base_version="flux1",
            architecture=f"flux-1-{self.variant}",
            implementation="https://github.com/black-forest-labs/flux",
            resolution=(1024, 1024),
            records_all_text_rates=True,
        )
        self.sampling = SamplingDefaults(steps=50 if self.variant == "dev" else 4, scale="guidance")

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if one is missing, broken or another model."""
        self._files.check(parts)
        for part in set(parts) & set(self.tokenizers):
            self.tokenizers[part]

    def source(self, part: str) -> Path | None:
        """Return the file or folder that `part` is loaded from, or None where there is none."""
        if part == CONTROLNET:
            return self._control or self._files.parts.source(DENOISER)
        return self._files.parts.source(part)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        if part == CONTROLNET:
            return self.load_control(self._control, dtype, device)
        return self._files.load(part, dtype, device)

    def load_control(self, path: Path | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load a ControlNet, or make one of the denoiser; see `TakesControl`."""
        with self._files.transformer() as base:
            if path is None:
                return controlnet.begin(base, dtype, device)
        return controlnet.load(path, base.model.shape, dtype, device)

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return each text encoder's token ids, (B, L) int64, by its name; masks as `<name>_mask`."""
        return text.tokenize(self.tokenizers, captions, self.t5_max_length)

    def readers(self) -> dict[str, TokenizerReader]:
        """Return that CLIP-L reads one window, and T5 as many tokens as it is set to, less an end."""
        return {
            CLIP_L: TokenizerReader(self.tokenizers[CLIP_L], CLIP_LENGTH - 2),
            T5XXL: TokenizerReader(self.tokenizers[T5XXL], self.t5_max_length - 1),
        }

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return `l_pooled` (B, 768); `t5_out` (B, T, 4096) and `t5_attn_mask` (B, T): what is given runs."""
        return text.encode(encoders, tokens, self.apply_t5_mask)

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return scaled latents (B, C, H/8, W/8) float32 of pixels (B, 3, H, W) in [-1, 1]."""
        return self.latents.scaled(autoencoder.encode(vae, pixels, rng, is_clamped=False))

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
        added = controlnet.residuals(conditioning.control, dtype)
        tokens = denoiser(**self._told(noisy, timesteps, conditioning, dtype), residuals=added)
        return unpack(tokens, *noisy.shape[-2:]).to(noisy.dtype)

    def control(
        self,
        net: nn.Module,
        image: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> dict[str, Tensor]:
        """Return what a ControlNet adds behind the double blocks; see `TakesControl`."""
        told = self._told(noisy, timesteps, conditioning, compute_dtype(net, noisy.device))
        return controlnet.named(net(image, **told))

    def added_weights(self, net: nn.Module) -> frozenset[str]:
        """Return the names of a ControlNet's weights that the denoiser has not."""
        return controlnet.added_weights(net)

    def _told(
        self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Return what the denoiser and a ControlNet are told, as arguments of `Flux`."""
        words, (batch, _, height, width) = conditioning.text, noisy.shape
        t5_out = words["t5_out"]
        return {
            "img": pack(noisy).to(dtype),
            "img_ids": image_ids(batch, height, width, noisy.device),
            "txt": t5_out.to(dtype),
            "txt_ids": torch.zeros(*t5_out.shape[:2], 3, device=noisy.device),
            "timesteps": timesteps / 1000,
            "y": words["l_pooled"].to(dtype),
            "guidance": conditioning.guidance,
            "txt_attention_mask": words["t5_attn_mask"] if self.apply_t5_mask else None,
        }

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        """Return (num_steps + 1,) noise levels from 1 to 0; for dev, the higher the larger the image is."""
        unit = self.latents.downscale * self.latents.patch
        num_tokens = (width // unit) * (height // unit)
        return flow_sigmas(num_steps, shift_exponent(num_tokens) if self.variant == "dev" else None)

    def blocks(self, part: str, model: nn.Module) -> list[nn.Module]:
        """Return the double blocks, then the single blocks, if any; of a text encoder, its layers."""
        if part == DENOISER:
            return [*cast(Flux, model).double_blocks, *cast(Flux, model).single_blocks]
        if part == CONTROLNET:
            return list(cast(FluxControlNet, model).double_blocks)
        return text_encoders.layers(model)

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return the positions of T5's tokens, (T, 3) zeros, and whether T5 saw its mask."""
        return {
            "txt_ids": torch.zeros(self.t5_max_length, 3),
            "apply_t5_attn_mask": torch.tensor(self.apply_t5_mask),
        }

    def metadata(self) -> dict[str, object]:
        """Return the option that changes what the model is told."""
        return {"ss_apply_t5_attn_mask": self.apply_t5_mask}

    def weights_in_use(self, part: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return all weights: every part is used to its end."""
        return dict(model.named_parameters())

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of `model` that adapters know, in the order in which files list them."""
        if part == DENOISER:
            return targets.denoiser_targets(cast(Flux, model))
        if part == CLIP_L:
            return clip.targets(model, part, "te1")
        return t5_targets(model, part, "te3") if part == T5XXL else iter(())

    def further_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers that no adapter of ours is trained on; see `HasFurtherTargets`."""
        owners = {DENOISER: "unet", CLIP_L: "te1_text_model", T5XXL: "te3"}
        known = [target.module for target in self.adapter_targets(part, model)]
        return targets.further_targets(model, part, known, owners[part]) if part in owners else iter(())

    def published(self, part: str) -> AbstractContextManager[Published]:
        """Open a part's file, which holds nothing but that part; see `Published`."""
        return self._files.published(part)

    def write(self, parts: TrainedParts, path: Path, how: Publishing) -> None:
        """Write the given parts, each as a file of its own unless `how` says otherwise."""
        publishing.write(self._publisher, parts, path, how)

    def written_bytes(self, parts: TrainedParts, how: Publishing) -> int:
        """Return how much `write` would write."""
        return publishing.written_bytes(self._publisher, parts, how)


def _bundled_tokenizers(transformer: Path | None) -> Path | None:
    """Return the tokenizers that lie beside the denoiser, as small models for trying things out have them."""
    folder = transformer.parent / "tokenizers" if transformer else None
    return folder if folder and folder.is_dir() else None
