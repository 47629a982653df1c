"""The seam between one architecture and everything else: what a family of models must be able to do.

A family is bound to the paths and options of one run and holds no weights. Its *parts* ("denoiser", "vae" and
one name per text encoder) are loaded one at a time, when first asked for, by `Parts`.
"""

from __future__ import annotations

import gc
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.config.run import Run
from sfumato.errors import UserError
from sfumato.models.published import Published
from sfumato.models.reading import Reader

DENOISER = "denoiser"
VAE = "vae"

logger = logging.getLogger(__name__)


class Prediction(Enum):
    """What the denoiser was trained to predict."""

    EPSILON = "epsilon"
    VELOCITY = "velocity"
    FLOW = "flow"


@dataclass(frozen=True)
class LatentSpace:
    """The geometry of a family's latents: `scaled = (raw - shift) * scale`."""

    channels: int
    downscale: int
    scale: float
    shift: float = 0.0
    patch: int = 1
    """Latent pixels per token side; picture sides must be multiples of `downscale * patch`."""

    def scaled(self, raw: Tensor) -> Tensor:
        """Return the VAE's latents as the denoiser sees them."""
        return (raw - self.shift) * self.scale

    def raw(self, scaled: Tensor) -> Tensor:
        """Return the denoiser's latents as the VAE makes them."""
        return scaled / self.scale + self.shift


@dataclass(frozen=True)
class CacheFormat:
    """How a family's cache files are called and what latent files hold, as sd-scripts has it.

    Attributes:
        latents: what the names of latent files end in, behind the picture's name and size.
        texts: what the names of text files end in, behind the picture's name.
        is_scaled: latents are stored as the denoiser sees them; otherwise as the VAE makes them.
        is_sized: names within a latent file carry the latents' size, so that one file can hold several.
        older: what the names of latent files ended in before, behind the picture's name; "" where there was
            no other name.
    """

    latents: str
    texts: str
    is_scaled: bool = True
    is_sized: bool = True
    older: str = ""


@dataclass(frozen=True)
class ImageSizes:
    """How each picture of a batch was framed: (B, 2) int64, (height, width) or (top, left)."""

    original: Tensor
    crop: Tensor
    target: Tensor


@dataclass(frozen=True)
class Conditioning:
    """Everything besides noisy latents and timesteps that the denoiser listens to.

    Attributes:
        text: the text encoders' outputs by name, each (B, ...); cache files use the same names.
        guidance: (B,) distilled guidance scale, for the models that have one.
        sizes: framing of each picture, for the models that are told.
    """

    text: Mapping[str, Tensor]
    guidance: Tensor | None = None
    sizes: ImageSizes | None = None


@dataclass(frozen=True)
class AdapterTarget:
    """One layer that an adapter may attach to.

    Attributes:
        name: the layer's part of an adapter file's key, after the adapter kind's own prefix:
            `unet_double_blocks_0_img_attn_qkv` becomes `lora_unet_double_blocks_0_img_attn_qkv`.
        module: the Linear or Conv2d itself.
        part: the part it belongs to ("denoiser" or a text encoder's name).
        kind: what sort of layer it is within its family (`img_attn`, `single_mod` ...), for per-kind ranks.
        block: (kind of block, index), or None outside the repeated blocks.
        splits: output widths of the projections fused in this layer; empty for an ordinary layer.
        is_default: whether it is adapted when nobody asks for it by name.
    """

    name: str
    module: nn.Module
    part: str
    kind: str = ""
    block: tuple[str, int] | None = None
    splits: tuple[int, ...] = ()
    is_default: bool = True


@dataclass(frozen=True)
class ModelIdentity:
    """What a family writes about itself into files.

    Attributes:
        base_version: `ss_base_model_version` of adapter files.
        architecture: `modelspec.architecture` without suffix.
        implementation: `modelspec.implementation`.
        resolution: native (width, height).
        prediction_type: `modelspec.prediction_type`, or None where the field is left out.
        adapter_implementation: `modelspec.implementation` of adapters, or None where it is the same.
    """

    base_version: str
    architecture: str
    implementation: str
    resolution: tuple[int, int]
    prediction_type: str | None = None
    adapter_implementation: str | None = None


@dataclass(frozen=True)
class SamplingDefaults:
    """What a picture is made with where nobody says otherwise.

    Attributes:
        steps: sampler steps.
        guidance: distilled guidance scale; models that have none ignore it.
        cfg_scale: classifier-free guidance scale; 1 asks the denoiser once per step, without negative prompt.
        scale: which of the two the prompt-line option `--l` and the key `scale` set.
        preview_steps: sampler steps of pictures made during training.
    """

    steps: int
    guidance: float = 3.5
    cfg_scale: float = 1.0
    scale: Literal["guidance", "cfg_scale"] = "cfg_scale"
    preview_steps: int = 20


class Family(Protocol):
    """One architecture. See `models/flux/family.py` for the shortest complete example."""

    latents: LatentSpace
    prediction: Prediction
    identity: ModelIdentity
    sampling: SamplingDefaults
    text_outputs: Mapping[str, tuple[str, ...]]
    """For each text encoder, in order, the names in `Conditioning.text` that it makes."""
    caches: CacheFormat
    """How cache files of this family are called and laid out."""

    def check(self, parts: Sequence[str]) -> None:
        """Read the headers behind `parts`; raise UserError if a file is missing, broken or another model."""
        ...

    def source(self, part: str) -> Path | None:
        """Return the file or folder that `part` is loaded from, or None where there is none."""
        ...

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode.

        Raises:
            UserError: the file is missing, truncated, or holds another model.
        """
        ...

    def tokenize(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """Return token ids, (B, L) int64, by each text encoder's name; masks as `<name>_mask`.

        Encoders that read long captions in windows take (B, windows, L), and weights of single tokens, where
        captions are read with emphasis, as `<name>_weights`.
        """
        ...

    def readers(self) -> Mapping[str, Reader]:
        """Return how much of a caption each text encoder reads, by its name; loads tokenizers, no weights."""
        ...

    def encode_text(
        self, encoders: Mapping[str, nn.Module], tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Run the given encoders on their tokens; return the outputs that `text_outputs` lists for them."""
        ...

    def encode_image(self, vae: nn.Module, pixels: Tensor, rng: torch.Generator | None) -> Tensor:
        """Return scaled latents (B, C, H/8, W/8) of pixels (B, 3, H, W) in [-1, 1]; `rng` None: the mean."""
        ...

    def decode_image(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in about [-1, 1] of scaled latents (B, C, H/8, W/8)."""
        ...

    def predict(
        self, denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        """Return the denoiser's raw output, shaped like `noisy`.

        Args:
            noisy: (B, C, H/8, W/8), scaled latents with noise.
            timesteps: (B,) float in [0, 1000]; a flow model's sigma times 1000.
        """
        ...

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        """Return (num_steps + 1,) noise levels from high to 0 for a picture of that size in pixels."""
        ...

    def blocks(self, part: str, model: nn.Module) -> list[nn.Module]:
        """Return a part's repeated blocks in execution order, for checkpointing, swap and compilation."""
        ...

    def adapter_targets(self, part: str, model: nn.Module) -> Iterator[AdapterTarget]:
        """Yield the layers of `model` that adapters know, in the order in which files list them."""
        ...

    def cache_extras(self) -> Mapping[str, Tensor]:
        """Return what sd-scripts expects in a text cache file beside the outputs."""
        ...

    def metadata(self) -> dict[str, object]:
        """Return what the family adds to the `ss_*` record of an adapter file: its own options."""
        ...

    def published(self, part: str) -> AbstractContextManager[Published]:
        """Open the file in which a part is published, with all other parts that lie in it."""
        ...

    def save(
        self, part: str, model: nn.Module, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]
    ) -> None:
        """Write one part in the family's published file format."""
        ...


@runtime_checkable
class ReadsEmphasis(Protocol):
    """A family that can read brackets in prompts as emphasis; training does so only where it is asked to."""

    def tokenize_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `tokenize` does, with `(word:1.3)` and `[word]` as emphasis: `<name>_weights`."""
        ...


@runtime_checkable
class TellsSchedule(Protocol):
    """A family whose files can say that the model's noise schedule ends in pure noise."""

    zero_terminal: bool


@runtime_checkable
class SavesForDiffusers(Protocol):
    """A family that can write a part as a folder in diffusers' layout, too."""

    def save_for_diffusers(self, part: str, model: nn.Module, folder: Path, dtype: torch.dtype) -> None:
        """Write one part to its place in a folder from which diffusers loads it."""
        ...


def family_for(run: Run) -> Family:
    """Return the run's family, bound to the run's paths and options.

    Raises:
        UserError: there is no such family.
    """
    if run.family not in families():
        raise UserError(f"there is no family {run.family!r}; known: {', '.join(families())}")
    return importlib.import_module(f"sfumato.models.{run.family}.family").create(run)


def ends_in_pure_noise(family: Family) -> bool:
    """Return whether the base's own files say that its noise schedule ends in pure noise."""
    return isinstance(family, TellsSchedule) and family.zero_terminal


def families() -> list[str]:
    """Return the names of all families: the folders beside this file."""
    return [found.name for found in pkgutil.iter_modules([str(Path(__file__).parent)]) if found.ispkg]


class PartChange(Protocol):
    """What is done to each part right after it has been loaded."""

    def __call__(self, part: str, module: nn.Module, device: torch.device) -> None:
        """Change a part in place.

        Args:
            device: the one that will compute with it; the part itself may lie in main memory.
        """
        ...

    def mark(self, part: str) -> str:
        """Return what tells a changed part from others, for caches; "" if it is as it was."""
        ...


Placing = Callable[[nn.Module], None]
"""Brings a part that was loaded into main memory to the device, or as much of it as is to be there."""


@dataclass
class Parts:
    """The parts of one run's model, loaded when first asked for.

    Attributes:
        dtypes: storage dtype by part; a part that is not listed takes float32.
        change: what is done to a part that was loaded, or None.
        keeps_memory: do not hand the memory of released parts back to the device.
        placed: parts that are loaded into main memory, and what brings them to the device from there.
        loaded: names of all parts that were ever loaded, in order.
    """

    family: Family
    device: torch.device
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    change: PartChange | None = None
    keeps_memory: bool = False
    placed: Mapping[str, Placing] = field(default_factory=dict)
    loaded: list[str] = field(default_factory=list)
    _modules: dict[str, nn.Module] = field(default_factory=dict)

    def __getitem__(self, part: str) -> nn.Module:
        if part not in self._modules:
            logger.info("loading %s from %s", part, self.family.source(part))
            place = self.placed.get(part)
            home = self.device if place is None else torch.device("cpu")
            module = self.family.load(part, self.dtypes.get(part, torch.float32), home)
            if self.change is not None:
                self.change(part, module, self.device)
            if place is not None:
                place(module)
            self._modules[part] = module
            self.loaded.append(part)
        return self._modules[part]

    def __contains__(self, part: str) -> bool:
        return part in self._modules

    def on_device(self, part: str) -> nn.Module:
        """Return a part ready to compute, wherever it was put meanwhile; a placed one stays where it is."""
        module = self[part]
        return module if part in self.placed else module.to(self.device)

    def mark(self, part: str) -> str:
        """Return what tells a part that is changed after loading from others; "" if it is not changed."""
        return self.change.mark(part) if self.change is not None else ""

    def release(self, *parts: str) -> None:
        """Forget these parts, so that their memory can be used for something else."""
        for part in parts:
            self._modules.pop(part, None)
        gc.collect()
        if self.device.type == "cuda" and not self.keeps_memory:
            torch.cuda.empty_cache()
