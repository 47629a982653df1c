"""The seam between one architecture and everything else: what a family of models must be able to do.

A family is bound to the paths and options of one run and holds no weights. Its *parts* ("denoiser", "vae" and
one name per text encoder) are loaded one at a time, when first asked for, by `Parts`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.diffusion.flow_training import FlowTraining
from sfumato.models.interface.caption_lengths import CaptionReader
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.identity import ModelIdentity, SamplingDefaults
from sfumato.models.interface.latents import CacheFormat, LatentSpace
from sfumato.models.interface.published import Published
from sfumato.models.interface.publishing import Layout, Publishing, TrainedParts
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.interface.tokenizers import Tokenizers

DENOISER = "denoiser"
VAE = "vae"
CONTROLNET = "controlnet"
"""The part beside the denoiser by which it follows control images; not all families have one."""


class Prediction(Enum):
    """What the denoiser was trained to predict."""

    EPSILON = "epsilon"
    VELOCITY = "velocity"
    FLOW = "flow"


class Family(Protocol):
    """One architecture. See `models/families/flux/family.py` for the shortest complete example."""

    latents: LatentSpace
    prediction: Prediction
    identity: ModelIdentity
    sampling: SamplingDefaults
    text_outputs: Mapping[str, tuple[str, ...]]
    """For each text encoder, in order, the names in `Conditioning.text` that it makes."""
    tokenizers: Tokenizers[Any]
    """Of each text encoder; whoever adds words puts his own in their place."""
    caches: CacheFormat
    """How cache files of this family are called and laid out."""
    saved_as: Layout
    """How whole models are saved where nobody asks for anything else."""

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

    def readers(self) -> Mapping[str, CaptionReader]:
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
        self,
        denoiser: nn.Module,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Return the denoiser's raw output, shaped like `noisy`.

        Args:
            noisy: (B, C, H/8, W/8), scaled latents with noise.
            timesteps: (B,) float in [0, 1000]; a flow model's sigma times 1000.
            rng: for what a family draws in training, on the processor; None draws nothing.
        """
        ...

    def sampling_sigmas(self, num_steps: int, width: int, height: int) -> Tensor:
        """Return (num_steps + 1,) noise levels from high to 0 for an image of that size in pixels."""
        ...

    def blocks(self, part: str, model: nn.Module) -> list[nn.Module]:
        """Return a part's repeated blocks in execution order, for checkpointing, swap and compilation."""
        ...

    def weights_in_use(self, part: str, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return a part's weights on which what it is asked for depends, by their names in its state.

        Text encoders that are listened to before their end have others.
        """
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

    def write(self, parts: TrainedParts, path: Path, how: Publishing) -> None:
        """Write the model with these parts in place of the base's; see `publishing.write`."""
        ...

    def written_bytes(self, parts: TrainedParts, how: Publishing) -> int:
        """Return how much `write` would write; see `publishing.written_bytes`."""
        ...


@runtime_checkable
class ReadsEmphasis(Protocol):
    """A family that can read brackets in prompts as emphasis; training does so only where it is asked to."""

    def tokenize_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Return what `tokenize` does, with `(word:1.3)` and `[word]` as emphasis: `<name>_weights`."""
        ...


EmphasisMean = Literal["original", "abs", "none"]
"""What emphasis leaves as it would be without: the mean of an output, that of absolute values, or nothing."""


@runtime_checkable
class NormalizesEmphasis(Protocol):
    """A family that says what emphasis leaves as it is; otherwise it is the mean."""

    emphasis_mean: EmphasisMean


@runtime_checkable
class IsToldSizes(Protocol):
    """A family whose denoiser is told how an image was framed: `Conditioning.sizes`."""

    is_told_sizes: bool


@runtime_checkable
class NumbersBlocks(Protocol):
    """A family that counts the blocks of its denoiser through, so that each can have a learning rate."""

    num_blocks: int

    def block_numbers(self, model: nn.Module) -> Mapping[str, int]:
        """Return the number of the block that each of the denoiser's weights belongs to, from 0, by name."""
        ...


@dataclass(frozen=True)
class EncoderUse:
    """What a run's options say of single text encoders; None stands for all of them.

    Attributes:
        trained: those that are trained where a run trains text encoders.
        cached: those whose outputs may be computed once.
        dtypes: storage dtype of those that are not trained, where it is not that of the others.
        devices: where those that are not trained run, if not with everything else.
    """

    trained: Sequence[str] | None = None
    cached: Sequence[str] | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    devices: Mapping[str, torch.device] = field(default_factory=dict)


@runtime_checkable
class TellsEncoderUse(Protocol):
    """A family whose scripts have options for single text encoders."""

    encoder_use: EncoderUse


def encoder_use(family: Family) -> EncoderUse:
    """Return what a run's options say of single text encoders."""
    return family.encoder_use if isinstance(family, TellsEncoderUse) else EncoderUse()


@runtime_checkable
class TellsSchedule(Protocol):
    """A family whose files can say that the model's noise schedule ends in pure noise."""

    zero_terminal: bool


@runtime_checkable
class Inpaints(Protocol):
    """A family with models that repaint a part of an image, told by a mask and by what is left of the image.

    Their denoisers have further input channels; see `conditioning.inpainting`.
    """

    @property
    def is_inpainting(self) -> bool:
        """Whether the model is one of these, by its files or because it is to become one."""
        ...

    @property
    def is_plain(self) -> bool:
        """Whether its files hold none: further input channels are 0 until they are trained."""
        ...


def is_inpainting(family: Family) -> bool:
    """Return whether the model repaints parts of images."""
    return isinstance(family, Inpaints) and family.is_inpainting


@runtime_checkable
class TakesResolutions(Protocol):
    """A family whose denoiser may depend on how large the images are that it is trained on."""

    def take_resolutions(self, resolutions: Sequence[tuple[int, int]]) -> None:
        """Take note of the (width, height) in pixels of the data sets, before the denoiser is loaded."""
        ...


@runtime_checkable
class TakesControl(Protocol):
    """A family whose denoiser can follow a control image, by what a ControlNet adds inside it.

    Its part `CONTROLNET` is the one that a run names; others are loaded by their paths.
    """

    def load_control(self, path: Path | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load a ControlNet, frozen and in eval mode.

        Args:
            path: None makes one that changes nothing yet, with numbers from torch's generator.

        Raises:
            UserError: the file is no ControlNet, or one for another model.
        """
        ...

    def control(
        self,
        net: nn.Module,
        image: Tensor,
        noisy: Tensor,
        timesteps: Tensor,
        conditioning: Conditioning,
    ) -> dict[str, Tensor]:
        """Return what a ControlNet adds inside the denoiser, as entries of `Conditioning.control`.

        Those of several networks are added up by their names.

        Args:
            net: as `load_control` returns it.
            image: (B, 3, H, W) in [-1, 1], as large as what the latents are of.
            noisy, timesteps, conditioning: as `predict` has them.
        """
        ...

    def added_weights(self, net: nn.Module) -> frozenset[str]:
        """Return the names of a ControlNet's weights that the denoiser has not."""
        ...


@runtime_checkable
class HasUnet(Protocol):
    """A family whose denoiser is a UNet of diffusers, which effects can work inside of."""

    def depths(self, model: nn.Module) -> list[nn.Module]:
        """Return the modules of the first half before which features can be shrunk, by depth."""
        ...


@runtime_checkable
class HasFlowTraining(Protocol):
    """A family whose scripts have options of their own for how a flow model is trained."""

    flow_training: FlowTraining


def is_told_sizes(family: Family) -> bool:
    """Return whether the denoiser is told how an image was framed."""
    return isinstance(family, IsToldSizes) and family.is_told_sizes


def ends_in_pure_noise(family: Family) -> bool:
    """Return whether the base's own files say that its noise schedule ends in pure noise."""
    return isinstance(family, TellsSchedule) and family.zero_terminal
