"""How Stable Diffusion 3 is written: the denoiser's file with all that it holds, or part by part."""

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
from sfumato.models.families.sd3.files import PARTS, Sd3Files
from sfumato.models.families.sd3.keys import to_diffusers
from sfumato.models.families.sd3.network import MMDiTShape
from sfumato.models.families.sd3.text import T5XXL
from sfumato.models.families.sd3.transformer import TRANSFORMER, folder_settings
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, TrainedParts, part_paths


@dataclass(frozen=True)
class Sd3Publisher:
    """A `Publisher` of Stable Diffusion 3. A folder is about the denoiser alone."""

    base: Sd3Files
    layout = Layout.WHOLE_FILE

    @contextmanager
    def files(self, parts: TrainedParts, path: Path, how: Publishing) -> Iterator[Sequence[WeightFile]]:
        """Yield the files of weights; see `Publisher`."""
        if how.layout is Layout.PART_FILES:
            places = part_paths(path, [part for part in PARTS if part in parts])
            own = {place: self._published(part, parts[part]) for part, place in places.items()}
            yield [WeightFile(place, tensors, how.metadata, how.dtype) for place, tensors in own.items()]
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
            shape = MMDiTShape.of({name: tensor.shape for name, tensor in own.items()})
        taken_over = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")
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
        """Yield what the base's file holds, with these parts and the autoencoder in their places.

        Of a base in several files, what was not trained stays there, but for the autoencoder.
        """
        with ExitStack() as opened:
            base = opened.enter_context(self.base.transformer())
            found = _prefixed(PARTS[DENOISER].prefixes[0], parts.get(DENOISER, base.tensors))
            others = dict(base.others)
            for part in (VAE, *(part for part in parts if part not in (DENOISER, VAE))):
                file = opened.enter_context(self.base.parts.opened_if_any(part))
                if part in parts:
                    own = self._published(part, parts[part])
                elif file is not None:
                    own = _all_of(file)
                else:
                    continue
                found |= _prefixed(PARTS[part].prefixes[0], own)
            yield found | {name: value for name, value in others.items() if name not in found}

    def _published(self, part: str, state: PartTensors) -> PartTensors:
        """Return a part's tensors under the names of published files, without prefix."""
        if part == DENOISER:
            return state
        if part == VAE:
            return autoencoder.published(state)
        return text_encoders.published_t5(state) if part == T5XXL else text_encoders.published_clip(state)


def _all_of(file: TensorReader) -> dict[str, LazyTensor]:
    return {name: file.lazy(name) for name in file.keys()}  # noqa: SIM118 - a reader is no mapping


def _prefixed(prefix: str, tensors: PartTensors) -> dict[str, LazyTensor]:
    return {prefix + name: value for name, value in tensors.items()}
