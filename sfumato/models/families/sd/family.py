"""Stable Diffusion 1 and 2: a UNet, one CLIP text encoder and an autoencoder.

Version 2 has another text encoder, of which the last layer is left out, and its 768-pixel model predicts
velocity instead of noise (Salimans and Ho 2022, arXiv:2202.00512).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.checkpoints.tensors import open_tensors
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess, access_for
from sfumato.models.components import text_encoders
from sfumato.models.components.stable_diffusion import clip
from sfumato.models.components.stable_diffusion.base import StableDiffusion
from sfumato.models.components.stable_diffusion.base_files import base_files, control_file
from sfumato.models.components.stable_diffusion.checkpoint import OPTION
from sfumato.models.components.stable_diffusion.predicted import Predicted, predicted_by
from sfumato.models.components.stable_diffusion.prompt_reading import PromptReading, reading_for
from sfumato.models.components.tensor_views import view_of
from sfumato.models.components.unet import depths, unet_targets
from sfumato.models.components.unet.unet_targets import Numbering
from sfumato.models.families.sd.layouts import SD1, SD2, TEXT, is_version_2
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.identity import ModelIdentity
from sfumato.models.interface.latents import CacheFormat
from sfumato.models.interface.targets import AdapterTarget

_BLOCKS = {
    "input_blocks": Numbering("down", 0),
    "middle_block": Numbering("mid", 12, is_one=True),
    "output_blocks": Numbering("up", 13),
}
"""How blocks are counted through, 25 in all."""
_TOKENIZER_1 = clip.TokenizerSource("tokenizer")
_TOKENIZER_2 = clip.TokenizerSource("tokenizer", ("stabilityai/stable-diffusion-2",), "!")
_SD1 = SD1, _TOKENIZER_1, ", or add --v2 if it is version 2"
_SD2 = SD2, _TOKENIZER_2, ", or leave out --v2 if it is version 1"


def create(run: Run) -> SdFamily:
    """Return the family that the run's options describe."""
    model, captions = run.get(ModelConfig, ModelConfig()), run.get(CaptionConfig, CaptionConfig())
    tokenizers = Path(model.tokenizer_cache_dir) if model.tokenizer_cache_dir else None
    access = access_for(run)
    layout, source, remedy = _SD2 if model.v2 else _SD1
    files = base_files(model, layout, [source], access, remedy)
    return SdFamily(
        files.base,
        files.vae,
        tokenizers,
        is_v2=model.v2,
        predicted=predicted_by(model, files.base),
        access=access,
        clip_skip=model.clip_skip,
        max_token_length=captions.max_token_length,
        has_emphasis=captions.weighted_captions,
        use_mmap=not model.disable_mmap_load_safetensors,
        inpaints=run.get(ImageConfig, ImageConfig()).train_inpainting,
        reading=reading_for(run),
        control=control_file(run, access),
    )


_NOISE = Predicted()


class SdFamily(StableDiffusion):
    """Stable Diffusion 1 or 2 bound to its files.

    Args:
        is_v2: whether the user says that it is version 2; `check` compares.
        clip_skip: layer of the text encoder that is listened to, counted from the last; None is the last.
        path, vae, tokenizers, predicted, max_token_length, has_emphasis, use_mmap, access,
            inpaints, reading, control: as `StableDiffusion` has it.
    """

    text_outputs: Mapping[str, tuple[str, ...]] = {TEXT: ("hidden_state",)}
    word_keys: Mapping[str, str] = {TEXT: "emb_params"}
    text_layers = (
        *("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID"),
        *(f"OUT{number:02d}" for number in range(3, 12)),
    )
    caches = CacheFormat("_sd.npz", "_sd_te.npz", is_scaled=False, is_sized=False, older=".npz")

    def __init__(
        self,
        path: Path | None,
        vae: Path | None = None,
        tokenizers: Path | None = None,
        *,
        is_v2: bool = False,
        predicted: Predicted = _NOISE,
        clip_skip: int | None = None,
        max_token_length: int | None = None,
        has_emphasis: bool = False,
        use_mmap: bool = True,
        access: HubAccess = ANYBODY,
        inpaints: bool = False,
        reading: PromptReading | None = None,
        control: Path | None = None,
    ) -> None:
        self.layout = SD2 if is_v2 else SD1
        self.tokenizer_sources = {TEXT: _TOKENIZER_2 if is_v2 else _TOKENIZER_1}
        self.identity = _identity(is_v2, predicted.is_velocity)
        super().__init__(
            path,
            vae,
            tokenizers,
            predicted=predicted,
            max_token_length=max_token_length,
            has_emphasis=has_emphasis,
            use_mmap=use_mmap,
            access=access,
            inpaints=inpaints,
            reading=reading,
            control=control,
        )
        self.is_v2 = is_v2
        self._layer = (reading and reading.layer) or clip_skip or 1

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if a file is missing, broken or another model."""
        self._check_version()
        super().check(parts)
        if TEXT in parts:
            self._check_layer()

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return `hidden_state` (B, 75 n + 2, W), normalised; (B, 77 n, W) for prompts that are read so."""
        if TEXT not in encoders:
            return {}
        words = clip.Words(tokens[TEXT], tokens.get(f"{TEXT}_weights"))
        states, _ = clip.encode(encoders[TEXT], words, layer=self._layer, keeps_frames=bool(self._reading))
        return {"hidden_state": states}

    def heard(self, conditioning: Conditioning) -> tuple[Tensor, None]:
        """Return the text; nothing is told besides."""
        return conditioning.text["hidden_state"], None

    def weights_in_use(self, part: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return all but those of layers behind the one that is listened to; see `Family`."""
        if part == TEXT:
            return clip.weights_in_use(model, layer=self._layer)
        return dict(model.named_parameters())

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of `model` that adapters know, in the order in which files list them."""
        if part == DENOISER:
            return unet_targets.targets(model, _BLOCKS, has_published_names=False)
        return clip.targets(model, part, "te") if part == TEXT else iter(())

    def depths(self, model: nn.Module) -> list[nn.Module]:
        """Count blocks; see `HasUnet`."""
        return depths.block_depths(model)

    def further_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers that no adapter of ours is trained on; see `HasFurtherTargets`."""
        if part == DENOISER:
            return unet_targets.further_targets(model, has_published_names=False)
        return clip.further_targets(model, part, "te") if part == TEXT else iter(())

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return the layer that is listened to."""
        return {"clip_skip": torch.tensor(self._layer)}

    def _check_layer(self) -> None:
        """Raise UserError if the text encoder has no such layer as `--clip_skip` asks for."""
        with self.checkpoint.opened(TEXT) as view:
            depth = text_encoders.num_clip_layers(view.shapes)
        if self._layer > depth:
            raise UserError(f"--clip_skip is {self._layer}; this text encoder has {depth} layers")

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


def _identity(is_v2: bool, predicts_velocity: bool) -> ModelIdentity:
    size = 768 if is_v2 and predicts_velocity else 512
    version_2 = "stable-diffusion-v2-768-v" if predicts_velocity else "stable-diffusion-v2-512"
    return ModelIdentity(
        base_version=("sd_v2" if is_v2 else "sd_v1") + ("_v" if predicts_velocity else ""),
        architecture=version_2 if is_v2 else "stable-diffusion-v1",
        implementation="https://github.com/Stability-AI/generative-models",
        resolution=(size, size),
        adapter_implementation="diffusers",
    )
