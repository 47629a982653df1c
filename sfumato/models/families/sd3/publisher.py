"""How Stable Diffusion 3 is written: the denoiser's file with all that it holds, or part by part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import SUFFIXES, TensorReader
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.errors import UserError
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.pipeline_index import copied
from sfumato.models.families.sd3.files import PARTS, Sd3Files
from sfumato.models.families.sd3.keys import to_diffusers
from sfumato.models.families.sd3.network import MMDiTShape
from sfumato.models.families.sd3.text import T5XXL
from sfumato.models.families.sd3.transformer import folder_settings
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, TrainedParts, part_paths

_FOLDER = PARTS[DENOISER].folder


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
                file = path / _FOLDER / "diffusion_pytorch_model.safetensors"
                yield [WeightFile(file, to_diffusers(own), {"format": "pt"}, how.dtype)]
        else:
            _check_file(path, how)
            with self._whole_file(parts) as own:
                yield [WeightFile(path, own, how.metadata, how.dtype)]

    def copies(self) -> dict[str, Path]:
        """Return nothing: a folder is about the denoiser alone."""
        return {}

    def write_settings(self, parts: TrainedParts, folder: Path, how: Publishing) -> None:
        """Write the denoiser's settings, and take over what the reference has."""
        with self._denoiser(parts) as own, atomic_file(folder / _FOLDER / "config.json") as file:
            shape = MMDiTShape.of({name: tensor.shape for name, tensor in own.items()})
            file.write(json.dumps(folder_settings(shape), indent=2).encode())
        if how.reference is not None:
            copied(how.reference, folder, ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3"))

    @contextmanager
    def _denoiser(self, parts: TrainedParts) -> Iterator[PartTensors]:
        """Yield the denoiser's tensors, those of the base if it was not trained."""
        if parts.keys() - {DENOISER}:
            raise ValueError(f"{', '.join(parts)}: only the denoiser is written so; write part by part")
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


def _check_file(path: Path, how: Publishing) -> None:
    """Raise UserError if a whole file cannot be written so."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} is no name for a model of Stable Diffusion 3; end it in .safetensors")
    if how.epoch or how.step:
        raise UserError("--epoch and --global_step are for pickled files of Stable Diffusion; leave them out")
