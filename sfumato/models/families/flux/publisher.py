"""How FLUX.1 is written: every part as a file of its own, or the denoiser for diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.components.dit.publishing import (
    WEIGHTS,
    check_file,
    part_files,
    require_only_denoiser,
    write_settings,
)
from sfumato.models.families.flux.files import FluxFiles
from sfumato.models.families.flux.keys import to_diffusers
from sfumato.models.families.flux.network import FluxShape
from sfumato.models.families.flux.transformer import TRANSFORMER, folder_settings
from sfumato.models.interface.family import CONTROLNET, DENOISER
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, TrainedParts


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
            with part_files(self.base.parts, parts, path) as files:
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
