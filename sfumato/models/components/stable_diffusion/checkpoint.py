"""Whole checkpoints of Stable Diffusion: all parts in one file, or a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import SUFFIXES, TensorReader
from sfumato.config import json_text
from sfumato.errors import UserError
from sfumato.models.components import autoencoder, part_prefixes, text_encoders
from sfumato.models.components.model_files import open_weights
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.stable_diffusion import openclip
from sfumato.models.components.tensor_views import TensorView, view_of
from sfumato.models.components.unet import input_channels, unet
from sfumato.models.components.unet.projections import with_projections
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import tensors_of

OPTION = "pretrained_model_name_or_path"


@dataclass(frozen=True)
class PartFormat:
    """How one part lies in both layouts.

    Attributes:
        what: the part, for messages.
        prefixes: what programs put before its names in a single file; we write the first.
        folder: its folder in diffusers' layout.
        network: what it is, and in which naming single files have it.
        activation: of a text encoder.
        has_projection: whether a text encoder's projection is used.
        leaves_last: whether the last layer of a single file's text encoder is not used.
        is_linear: whether layers around a UNet's transformers are Linear; some files hold 1x1 convolutions.
    """

    what: str
    prefixes: tuple[str, ...]
    folder: str
    network: Literal["unet", "vae", "clip", "openclip"]
    activation: str = "quick_gelu"
    has_projection: bool = False
    leaves_last: bool = False
    is_linear: bool = False

    def prefix_in(self, names: Iterable[str]) -> str:
        """Return what is before the part's names in a single file with these names."""
        return part_prefixes.prefix_in(names, self.prefixes) or self.prefixes[0]


@dataclass(frozen=True)
class Layout:
    """How one family's checkpoints look.

    Attributes:
        what: a checkpoint, for messages.
        kind: what `recognise` calls a single file.
        unet_kinds: what `recognise` calls the UNet in diffusers' naming.
        parts: each part's format.
        scale: of the latents.
        pipeline: diffusers' class for the whole, with its scheduler's class.
        is_told_by_weights: whether other programs guess from its weights what a model predicts.
        has_published_controls: whether files of ControlNets name tensors as checkpoints do, not as diffusers.
    """

    what: str
    kind: str
    unet_kinds: frozenset[str]
    parts: Mapping[str, PartFormat]
    scale: float
    pipeline: tuple[str, str]
    is_told_by_weights: bool = False
    has_published_controls: bool = True


VAE_FORMAT = PartFormat("an autoencoder", part_prefixes.VAE, "vae", "vae")


class Checkpoint:
    """The files of one base model.

    Args:
        layout: of the family.
        path: a single file, or a folder in diffusers' layout.
        vae: file or folder of an autoencoder that replaces the checkpoint's own.
        use_mmap: map files into memory instead of reading them plainly.
        inpaints: take the UNet as an inpainting model, with zeros for what its file has not.

    Attributes:
        variant: of a folder, take files with this word before their suffix (`fp16`) where a part has one.
    """

    def __init__(
        self,
        layout: Layout,
        path: Path | None,
        vae: Path | None,
        *,
        use_mmap: bool = True,
        inpaints: bool = False,
    ) -> None:
        self.variant: str | None = None
        self.layout = layout
        self.path = path
        self.vae = vae
        self.use_mmap = use_mmap
        self._inpaints = inpaints

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint is in diffusers' layout."""
        return self.path is not None and self.path.is_dir()

    def source(self, part: str) -> Path | None:
        """Return the file or folder that a part is loaded from."""
        if part == VAE and self.vae is not None:
            return self.vae / "vae" if (self.vae / "vae").is_dir() else self.vae
        if self.path is None or not self.is_folder:
            return self.path
        folder = self.path / self.layout.parts[part].folder
        return (_variant(folder, self.variant) if self.variant else None) or folder

    def check(self, parts: Sequence[str]) -> None:
        """Read headers; raise UserError if a file is missing, broken or another model.

        An autoencoder of its own needs no base beside it.
        """
        if self.path is not None or self.vae is None or {*parts} != {VAE}:
            self._check_kind()
        for part in parts:
            with self.opened(part):
                pass
        if DENOISER in parts:
            self._check_channels()

    def load(self, part: str, dtype: torch.dtype | None, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode; `dtype` None keeps each tensor's own."""
        with self.opened(part) as view:
            return self._loaded(part, view, dtype, device)

    def structure(self, part: str) -> nn.Module:
        """Return one part without numbers, on the meta device; nothing is read but headers and settings."""
        with self.opened(part) as view:
            return self._loaded(part, view.hollow(), None, torch.device("meta"))

    def tensors(self, part: str) -> dict[str, LazyTensor]:
        """Return one part's tensors as they are, by their names in its state; read when they are used."""
        return tensors_of(self.load(part, None, torch.device("cpu")), is_copy=True)

    @contextmanager
    def opened(self, part: str) -> Iterator[TensorView]:
        """Open a part's tensors: a text encoder's by transformers' names, others in either naming."""
        source = self._existing(part)
        with open_weights(source, use_mmap=self.use_mmap) as file:
            view = self._part_of(file, part)
            if self.layout.parts[part].is_linear:
                view = with_projections(view, is_linear=True)
            if part == DENOISER and self._inpaints:
                view = input_channels.widened(view)
            if not view.shapes:
                raise UserError(f"{self._option(part)} is {source}: {self._lack(part, view_of(file))}")
            yield view

    @property
    def num_heads(self) -> tuple[int, ...] | None:
        """Attention heads of each level of the UNet, where a folder tells them."""
        source = self._existing(DENOISER)
        return _heads(self._config(DENOISER), source)

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet takes a mask and masked latents too, by its file or because it is to."""
        return self._inpaints or not self.is_plain

    @cached_property
    def is_plain(self) -> bool:
        """Whether the UNet's file, if it can be read, takes noisy latents alone."""
        try:
            with open_weights(self._existing(DENOISER), use_mmap=self.use_mmap) as file:
                return not input_channels.is_inpainting(self._part_of(file, DENOISER).shapes)
        except UserError:  # which `check` reports
            return True

    @contextmanager
    def file(self) -> Iterator[TensorReader | None]:
        """Open the single file, where there is one."""
        if self.path is None or self.is_folder or not self.path.exists():
            yield None
            return
        with open_weights(self.path, use_mmap=self.use_mmap) as file:
            yield file

    def autoencoder_shape(self) -> autoencoder.AutoencoderShape | None:
        """Return the autoencoder's sizes; None if it cannot be read, which `check` reports."""
        try:
            with self.opened(VAE) as view:
                return autoencoder.told_shape(view.shapes)
        except UserError:
            return None

    def _loaded(
        self, part: str, view: TensorView, dtype: torch.dtype | None, device: torch.device
    ) -> nn.Module:
        spec, config = self.layout.parts[part], self._config(part)
        if spec.network == "unet":
            return unet.load(view, dtype, device, num_heads=_heads(config, view.path), what=spec.what)
        if spec.network == "vae":
            return autoencoder.load_view(view, dtype, device, what=spec.what)
        return text_encoders.load_clip_view(
            view,
            dtype,
            device,
            activation=config.get("hidden_act", spec.activation),
            num_heads=config.get("num_attention_heads"),
            has_projection=spec.has_projection,
            what=spec.what,
        )

    def _part_of(self, file: TensorReader, part: str) -> TensorView:
        spec, view = self.layout.parts[part], view_of(file)
        if part == VAE and (self.vae is not None or self.is_folder):
            return autoencoder.own_tensors(view)
        if self.is_folder:
            return view
        own = view.below(spec.prefix_in(view.shapes))
        if spec.network == "vae":
            return autoencoder.own_tensors(own)
        if spec.network != "openclip" or not own.shapes:
            return own
        layers = openclip.num_layers(own.shapes) - spec.leaves_last
        return openclip.as_transformers(
            own, layers, has_projection=spec.has_projection, metadata=file.metadata
        )

    def _existing(self, part: str) -> Path:
        source = self.source(part)
        if source is None:
            raise UserError(f"--{OPTION} is not given; it must name {self.layout.what}")
        if not source.exists():
            lacks = self.is_folder and source != self.vae and self.path is not None and self.path.exists()
            reason, remedy = "lacks that folder" if lacks else "does not exist", f"give {self._wanted(part)}"
            if lacks and part == VAE:
                remedy += ", or an autoencoder with --vae"
            raise UserError(f"{self._option(part)} is {source}, which {reason}; {remedy}")
        return source

    def _option(self, part: str) -> str:
        return "--vae" if part == VAE and self.vae is not None else f"--{OPTION}"

    def _wanted(self, part: str) -> str:
        return self.layout.parts[part].what if self._option(part) == "--vae" else self.layout.what

    def _lack(self, part: str, found: TensorView) -> str:
        """Return what a file without a part is, and what to give instead."""
        if self._option(part) == f"--{OPTION}" and part == VAE:
            return "it holds no autoencoder; give a file that does, or one with --vae"
        return f"{describe(found.shapes)}; give {self._wanted(part)}"

    def _check_kind(self) -> None:
        """Raise UserError if the file or the folder's UNet is another model's."""
        wanted = self.layout.unet_kinds if self.is_folder else {self.layout.kind}
        source = self._existing(DENOISER)
        with open_weights(source, use_mmap=self.use_mmap) as file:
            shapes = view_of(file).shapes
        kind = recognise(shapes)
        if kind is None or kind.name not in wanted:
            raise UserError(f"--{OPTION} is {source}: {describe(shapes)}; give {self.layout.what}")

    def _check_channels(self) -> None:
        """Raise UserError if the UNet takes something else than the autoencoder's latents."""
        with self.opened(DENOISER) as view:
            channels, shape = input_channels.num_taken(view.shapes), self.autoencoder_shape()
        if shape is None or channels in (shape.channels, input_channels.num_inpainting(shape.channels)):
            return
        other = f"the autoencoder makes {shape.channels} channels and the UNet takes {channels}"
        raise UserError(
            f"{self._option(VAE)} is {self.vae or self.path}: {other}; give {self.layout.what} that "
            "generates images, with its own kind of autoencoder"
        )

    def _config(self, part: str) -> dict[str, Any]:
        """Return the settings beside a part's weights, where its folder has them."""
        source = self.source(part)
        is_variant = source is not None and source.is_file() and source != self.vae and self.is_folder
        folder = source.parent if source is not None and is_variant else source
        file = folder / "config.json" if folder else None
        return {} if file is None or not file.is_file() else json_text.read_object(file)


def _variant(folder: Path, word: str) -> Path | None:
    """Return a folder's file of that variant, or its first shard, safetensors before others."""
    found = [
        file
        for pattern in (f"*.{word}.*", f"*.{word}-00001-of-*")
        for file in sorted(folder.glob(pattern))
        if file.suffix != ".json"
    ]
    return min(found, key=lambda file: file.suffix not in SUFFIXES, default=None)


def _heads(config: Mapping[str, Any], path: Path) -> tuple[int, ...] | None:
    """Return the attention heads of each level that a UNet's settings tell, under their misleading name."""
    told = config.get("num_attention_heads") or config.get("attention_head_dim")
    if told is None:
        return None
    levels = config.get("block_out_channels")
    heads = [told] * len(levels) if isinstance(levels, list) and not isinstance(told, list) else told
    if not isinstance(heads, list) or not heads or any(type(each) is not int or each < 1 for each in heads):
        raise UserError(f"{path}: its config.json tells no number of attention heads; download it again")
    return tuple(heads)
