"""How FLUX.1 is written: every part as a file of its own, or the denoiser for diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import TensorReader
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.dit.publishing import (
    WEIGHTS,
    check_file,
    require_only_denoiser,
    write_settings,
)
from sfumato.models.components.recognise import weight_names
from sfumato.models.families.flux.files import CLIP_L, PARTS, T5XXL, FluxFiles
from sfumato.models.families.flux.keys import to_diffusers
from sfumato.models.families.flux.network import FluxShape
from sfumato.models.families.flux.transformer import TRANSFORMER, folder_settings
from sfumato.models.interface.family import CONTROLNET, DENOISER, VAE
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, TrainedParts, part_paths


@dataclass(frozen=True)
class FluxPublisher:
    """A `Publisher` of FLUX.1. Whole files and folders are about the denoiser alone."""

    base: FluxFiles
    layout = Layout.PART_FILES

    @contextmanager
    def files(self, parts: TrainedParts, path: Path, how: Publishing) -> Iterator[Sequence[WeightFile]]:
        """Yield the files of weights; see `Publisher`."""
        if CONTROLNET in parts:
            yield [WeightFile(path, parts[CONTROLNET], how.metadata, how.dtype)]
        elif how.layout is Layout.PART_FILES:
            with self._part_files(parts, path) as files:
                yield [WeightFile(place, own, how.metadata, how.dtype) for place, own in files.items()]
        elif how.layout is Layout.FOLDER:
            with self._denoiser(parts) as own:
                yield [WeightFile(path / WEIGHTS, to_diffusers(own), {"format": "pt"}, how.dtype)]
        else:
            check_file(path, TRANSFORMER.what, how)
            with self._whole_file(parts) as own:
                yield [WeightFile(path, own, how.metadata, how.dtype)]

    def copies(self) -> dict[str, Path]:
        """Return nothing: a folder is about the denoiser alone."""
        return {}

    def write_settings(self, parts: TrainedParts, folder: Path, how: Publishing) -> None:
        """Write the denoiser's settings, and take over what the reference has."""
        with self._denoiser(parts) as own:
            shape = FluxShape.of({name: tensor.shape for name, tensor in own.items()})
        taken_over = ("scheduler", "tokenizer", "tokenizer_2")
        write_settings(folder, folder_settings(shape), how, taken_over)

    @contextmanager
    def _part_files(self, parts: TrainedParts, path: Path) -> Iterator[dict[Path, PartTensors]]:
        """Yield what the file of each part holds, by its path."""
        places = part_paths(path, [part for part in PARTS if part in parts])
        with ExitStack() as opened:
            bases = {part: opened.enter_context(self.base.parts.opened_if_any(part)) for part in places}
            yield {place: _part_tensors(part, parts[part], bases[part]) for part, place in places.items()}

    @contextmanager
    def _denoiser(self, parts: TrainedParts) -> Iterator[PartTensors]:
        """Yield the denoiser's tensors, those of the base if it was not trained."""
        require_only_denoiser(parts)
        if DENOISER in parts:
            yield parts[DENOISER]
            return
        with self.base.transformer() as base:
            yield base.tensors

    @contextmanager
    def _whole_file(self, parts: TrainedParts) -> Iterator[dict[str, LazyTensor]]:
        """Yield what the denoiser's file holds, under its own names unless they are diffusers'."""
        require_only_denoiser(parts)
        with self.base.transformer() as base:
            own = parts.get(DENOISER, base.tensors)
            if own.keys() != base.tensors.keys():
                raise ValueError("these are not the tensors that the denoiser is made of")
            yield {base.prefix + name: tensor for name, tensor in own.items()} | dict(base.others)


def _part_tensors(part: str, state: PartTensors, base: TensorReader | None) -> PartTensors:
    """Return what a file with that part alone holds, with what its base's file holds besides."""
    if part == DENOISER:
        return {**state, **_remarks(base)}
    if part == VAE:
        return autoencoder.published(state)
    if base is not None:
        return _text_tensors(state, base)
    return {CLIP_L: text_encoders.published_clip, T5XXL: text_encoders.published_t5}[part](state)


def _remarks(base: TensorReader | None) -> PartTensors:
    """Return what the denoiser's file holds for other programs."""
    if base is None:
        return {}
    weights = weight_names(base.keys())
    others = [name for name in base.keys() if name not in weights]  # noqa: SIM118 - a reader is no mapping
    return {name: base.lazy(name, is_foreign=True) for name in others}


def _text_tensors(state: PartTensors, base: TensorReader) -> dict[str, LazyTensor]:
    """Return all tensors of a text encoder's file, those that it was loaded from replaced."""
    found = {text_encoders.name_in_file(name, base.keys()): tensor for name, tensor in state.items()}
    return {name: found.get(name) or base.lazy(name) for name in base.keys()}  # noqa: SIM118 - no mapping
