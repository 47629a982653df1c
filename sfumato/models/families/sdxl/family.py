"""SDXL: a UNet that is also told how its images were framed, two CLIP text encoders and an autoencoder.

Both text encoders are listened to one layer before their end, without the last norm; the second also gives a
projected summary of the text (Podell et al. 2023, arXiv:2307.01952).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.hub.access import access_for
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.stable_diffusion.base import StableDiffusion
from sfumato.models.components.stable_diffusion.base_files import base_files, control_file
from sfumato.models.components.stable_diffusion.predicted import predicted_by
from sfumato.models.components.stable_diffusion.prompt_reading import reading_for
from sfumato.models.components.unet import depths, unet_targets
from sfumato.models.components.unet.unet_targets import Numbering
from sfumato.models.families.sdxl.layout import SDXL, TEXT_1, TEXT_2
from sfumato.models.families.sdxl.options import SecondPromptOptions
from sfumato.models.interface.conditioning import Conditioning, ImageSizes
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.identity import ModelIdentity
from sfumato.models.interface.latents import CacheFormat
from sfumato.models.interface.targets import AdapterTarget, ControlledLayer

_BLOCKS = {
    "input_blocks": Numbering("down", 1),
    "middle_block": Numbering("mid", 10),
    "output_blocks": Numbering("up", 13),
}
"""How blocks are counted through, 23 in all: the embeddings come first and the output last."""
_PENULTIMATE = 2
_OWNERS = {TEXT_1: "te1", TEXT_2: "te2"}
"""What files put before the layers of each text encoder."""


def create(run: Run) -> SdxlFamily:
    """Return the family that the run's options describe."""
    model, captions = run.get(ModelConfig, ModelConfig()), run.get(CaptionConfig, CaptionConfig())
    tokenizers = Path(model.tokenizer_cache_dir) if model.tokenizer_cache_dir else None
    access = access_for(run)
    files = base_files(model, SDXL, SdxlFamily.tokenizer_sources.values(), access)
    family = SdxlFamily(
        files.base,
        files.vae,
        tokenizers,
        predicted=predicted_by(model, files.base),
        access=access,
        max_token_length=captions.max_token_length,
        has_emphasis=captions.weighted_captions,
        use_mmap=not model.disable_mmap_load_safetensors,
        inpaints=run.get(ImageConfig, ImageConfig()).train_inpainting,
        reading=reading_for(run),
        control=control_file(run, access),
    )
    if second := run.get(SecondPromptOptions, SecondPromptOptions()).prompt2:
        family.second_prompts = {run[GenerationConfig].prompt: second}
    return family


class SdxlFamily(StableDiffusion):
    """SDXL bound to its files.

    Attributes:
        second_prompts: what the second text encoder reads in the place of some prompts.
    """

    layout = SDXL
    tokenizer_sources: Mapping[str, clip.TokenizerSource] = {
        TEXT_1: clip.TokenizerSource("tokenizer"),
        TEXT_2: clip.TokenizerSource("tokenizer_2", ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",), "!"),
    }
    identity = ModelIdentity(
        base_version="sdxl_base_v1-0",
        architecture="stable-diffusion-xl-v1-base",
        implementation="https://github.com/Stability-AI/generative-models",
        resolution=(1024, 1024),
    )
    text_outputs: Mapping[str, tuple[str, ...]] = {
        TEXT_1: ("hidden_state1",),
        TEXT_2: ("hidden_state2", "pool2"),
    }
    word_keys: Mapping[str, str] = {TEXT_1: "clip_l", TEXT_2: "clip_g"}
    second_prompts: Mapping[str, str] = {}
    is_told_sizes = True
    num_blocks = 23
    caches = CacheFormat(
        "_sdxl.npz",
        "_te_outputs.npz",
        is_scaled=False,
        is_sized=False,
        older=".npz",
        adopts_texts=False,  # sd-scripts multiplies by the transpose of the published projection
    )

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return `hidden_state1` (B, 75 n + 2, 768); `hidden_state2` (.., 1280) and `pool2` (B, 1280).

        There are 77 n positions for prompts that are read so.

        Of a text in several windows, the summary is that of the first.
        """
        outputs = {}
        for number, part in enumerate((TEXT_1, TEXT_2), start=1):
            if part in encoders:
                words = clip.Words(tokens[part], tokens.get(f"{part}_weights"))
                frames = {"keeps_frames": self._reading is not None}
                states, out = clip.encode(encoders[part], words, layer=self._layer, has_norm=False, **frames)
                outputs[f"hidden_state{number}"] = states
                if part == TEXT_2:
                    outputs["pool2"] = out.text_embeds.unflatten(0, words.ids.shape[:2])[:, 0]
        return outputs

    def heard(self, conditioning: Conditioning) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the text of both encoders, and the summary and framing that are told besides."""
        words, sizes = conditioning.text, conditioning.sizes
        if sizes is None:
            raise ValueError("this model must be told how its images are framed: Conditioning.sizes")
        context = torch.cat([words["hidden_state1"], words["hidden_state2"].to(words["hidden_state1"])], -1)
        told = {"text_embeds": words["pool2"], "time_ids": framing(sizes).to(context.device)}
        return context, told

    def weights_in_use(self, part: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return all but the first text encoder's last layer and norm; see `Family`."""
        if part == TEXT_1:
            return clip.weights_in_use(model, layer=self._layer, has_norm=False)
        return dict(model.named_parameters())

    def _texts_for(self, part: str, captions: Sequence[str]) -> Sequence[str]:
        if part != TEXT_2:
            return captions
        return [self.second_prompts.get(caption, caption) for caption in captions]

    @property
    def _layer(self) -> int:
        """The layer of both text encoders that is listened to, counted from the last."""
        return (self._reading and self._reading.layer) or _PENULTIMATE

    def block_numbers(self, model: nn.Module) -> dict[str, int]:
        """Return the number of each weight's block; see `NumbersBlocks`."""
        return unet_targets.block_numbers(model, _BLOCKS, last=self.num_blocks - 1)

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of `model` that adapters know, in the order in which files list them."""
        if part == DENOISER:
            return unet_targets.targets(model, _BLOCKS, has_published_names=True)
        return clip.targets(model, part, _OWNERS[part]) if part in _OWNERS else iter(())

    def depths(self, model: nn.Module) -> list[nn.Module]:
        """Count layers; see `HasUnet`."""
        return depths.layer_depths(model)

    def controlled_layers(self, model: nn.Module) -> Iterator[ControlledLayer]:
        """Yield the layers of the UNet that follow control images; see `TakesLLLite`."""
        return unet_targets.controlled_layers(model, _BLOCKS, has_published_names=True)

    def further_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers that no adapter of ours is trained on; see `HasFurtherTargets`."""
        if part == DENOISER:
            return unet_targets.further_targets(model, has_published_names=True)
        return clip.further_targets(model, part, _OWNERS[part]) if part in _OWNERS else iter(())


def framing(sizes: ImageSizes) -> Tensor:
    """Return (B, 6) float32: original height and width, top and left of the crop, target height and width."""
    return torch.cat([sizes.original, sizes.crop, sizes.target], dim=1).float()
