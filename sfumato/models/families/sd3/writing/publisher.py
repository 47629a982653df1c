"""How Stable Diffusion 3 is written: the denoiser's file with all that it holds, a folder, or part by part.

A text encoder lies in that file, as some models are published, or in one of its own beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import TensorReader
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.dit.publishing import check_file, part_files, part_tensors
from sfumato.models.components.part_prefixes import prefix_in
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.families.sd3.files import PARTS, Sd3Files
from sfumato.models.families.sd3.text import OUTPUTS, T5XXL
from sfumato.models.families.sd3.transformer import TRANSFORMER
from sfumato.models.families.sd3.writing import pipeline_folder
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, TrainedParts, part_paths
from sfumato.models.interface.tokenizers import Tokenizers

_LOGIT_SCALE = "text_encoders.{}.logit_scale"
_SCALE_OF_CLIP = 4.6055
"""What sd-scripts writes beside each text encoder, T5 included; nothing reads it."""


@dataclass(frozen=True)
class Sd3Publisher:
    """A `Publisher` of Stable Diffusion 3. A folder holds what was trained, or all parts if it is complete.

    Attributes:
        included: text encoders that whole files hold in any case. Others that are given lie beside them if
            the base's own file holds none. None lets whole files hold all that are given.
        tokenizers: those that a folder needs.
    """

    base: Sd3Files
    included: Collection[str] | None = None
    tokenizers: Tokenizers[Tokenizer] = field(default_factory=lambda: Tokenizers({}))
    layout = Layout.WHOLE_FILE

    @contextmanager
    def files(self, parts: TrainedParts, path: Path, how: Publishing) -> Iterator[Sequence[WeightFile]]:
        """Yield the files of weights; see `Publisher`."""
        with ExitStack() as opened:
            if how.layout is Layout.PART_FILES:
                own = opened.enter_context(part_files(self.base.parts, parts, path))
                yield [WeightFile(place, tensors, how.metadata, how.dtype) for place, tensors in own.items()]
            elif how.layout is Layout.FOLDER:
                found = opened.enter_context(self._folder_parts(parts, how))
                yield pipeline_folder.weight_files(found, path, how)
            else:
                whole = opened.enter_context(self._whole_file(parts, how))
                yield [_whole(path, whole, how), *self._beside(parts, path, how, opened)]

    def copies(self) -> dict[str, Path]:
        """Return nothing: what a folder needs besides weights is written with its settings."""
        return {}

    def write_settings(self, parts: TrainedParts, folder: Path, how: Publishing) -> None:
        """Write settings, scheduler, tokenizers and the index; the base's own folder is a reference, too."""
        source = self.base.parts.source(DENOISER)
        own = source.parent if source is not None and source.name == PARTS[DENOISER].folder else None
        with self._folder_parts(parts, how) as found:
            models = {part: self.base.without_numbers(part) for part in found}
        pipeline_folder.write_surroundings(models, folder, self.tokenizers, how.reference or own)

    @contextmanager
    def _folder_parts(self, parts: TrainedParts, how: Publishing) -> Iterator[TrainedParts]:
        """Yield the parts of a folder by their names in their states."""
        with ExitStack() as opened:
            found = dict(parts)
            if DENOISER not in parts:
                found[DENOISER] = opened.enter_context(self.base.transformer()).tensors
            wanted = (VAE, *OUTPUTS) if how.is_complete else self.included or ()
            for part in wanted:
                if part not in parts and self.base.parts.source(part) is not None:
                    found[part] = opened.enter_context(self._state(part))
            yield {part: found[part] for part in PARTS if part in found}

    @contextmanager
    def _state(self, part: str) -> Iterator[PartTensors]:
        """Yield a part of the base other than the denoiser, by the names in its state."""
        if part == VAE:
            with self.base.parts.opened(part) as file:
                yield autoencoder.as_diffusers(_all_of(file))
        else:
            with self.base.published(part) as opened:
                yield self.base.complete(part, opened)

    @contextmanager
    def _whole_file(self, parts: TrainedParts, how: Publishing) -> Iterator[dict[str, LazyTensor]]:
        """Yield what the base's file holds, with these parts and the autoencoder in their places.

        Of a base in several files, what was not trained stays there, but for the autoencoder and the text
        encoders that are to be included.
        """
        with ExitStack() as opened:
            base = opened.enter_context(self.base.transformer())
            found = _prefixed(PARTS[DENOISER].prefixes[0], parts.get(DENOISER, base.tensors))
            found |= base.others
            for part in (VAE, *(part for part in OUTPUTS if self._is_within(part, parts, how))):
                if part not in parts and self._is_there(part) and part != VAE and not how.is_complete:
                    continue
                held = prefix_in(base.others, PARTS[part].prefixes)
                if part != VAE and not held and self.included is not None:
                    found[_LOGIT_SCALE.format(part)] = LazyTensor.foreign(torch.tensor(_SCALE_OF_CLIP))
                own = opened.enter_context(self._part(part, parts.get(part), how))
                if held and own:
                    found = {name: value for name, value in found.items() if not name.startswith(held)}
                found |= _prefixed(held or PARTS[part].prefixes[0], own)
            yield found

    @contextmanager
    def _part(self, part: str, state: PartTensors | None, how: Publishing) -> Iterator[PartTensors]:
        """Yield a part under the names of published files, without prefix; nothing if there is none."""
        with self.base.parts.opened_if_any(part) as file:
            if state is not None:
                yield part_tensors(part, state, file)
            elif file is None:
                yield {}
            elif part == VAE:
                yield autoencoder.published(autoencoder.as_diffusers(_all_of(file)))
            elif how.is_complete:
                own, is_alone = _all_of(file), part == T5XXL and not self._is_there(part)
                yield text_encoders.published_t5(own) if is_alone else own
            else:
                with self._state(part) as own:
                    yield text_encoders.published(own)

    def _beside(
        self, parts: TrainedParts, path: Path, how: Publishing, opened: ExitStack
    ) -> Iterator[WeightFile]:
        """Yield the files of the text encoders that the whole file does not hold, in their own dtypes."""
        apart = [part for part in OUTPUTS if part in parts and not self._is_within(part, parts, how)]
        for part, place in part_paths(path, [DENOISER, *apart]).items():
            if part != DENOISER:
                yield WeightFile(place, opened.enter_context(self._part(part, parts[part], how)))

    def _is_within(self, part: str, parts: TrainedParts, how: Publishing) -> bool:
        """Return whether whole files hold a text encoder."""
        if how.is_complete and self.base.parts.source(part) is not None:
            return True
        if self.included is None:
            return part in parts
        return part in self.included or (part in parts and self.base.parts.is_held(part))

    def _is_there(self, part: str) -> bool:
        """Return whether a part comes from the denoiser's own file."""
        return self.base.parts.source(part) == self.base.parts.source(DENOISER)


def _whole(path: Path, tensors: PartTensors, how: Publishing) -> WeightFile:
    """Return the file of a model that may be pickled."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        counters = {"epoch": how.epoch, "global_step": how.step}
        return WeightFile(path, tensors, how.metadata, how.dtype, counters)
    check_file(path, TRANSFORMER.what, how)
    return WeightFile(path, tensors, how.metadata, how.dtype)


def _all_of(file: TensorReader) -> dict[str, LazyTensor]:
    return {name: file.lazy(name) for name in file.keys()}  # noqa: SIM118 - a reader is no mapping


def _prefixed(prefix: str, tensors: PartTensors) -> dict[str, LazyTensor]:
    return {prefix + name: value for name, value in tensors.items()}
