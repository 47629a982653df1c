"""How Stable Diffusion 3 is written: the denoiser's file with all that it holds, or part by part.

A text encoder lies in that file, as some models are published, or in one of its own beside it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import TensorReader
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.dit import encoder_folders
from sfumato.models.components.dit.publishing import (
    WEIGHTS,
    check_file,
    require_only_denoiser,
    write_settings,
)
from sfumato.models.components.part_prefixes import prefix_in
from sfumato.models.families.sd3.files import PARTS, Sd3Files
from sfumato.models.families.sd3.keys import to_diffusers
from sfumato.models.families.sd3.network import MMDiTShape
from sfumato.models.families.sd3.text import OUTPUTS, T5XXL
from sfumato.models.families.sd3.transformer import TRANSFORMER, folder_settings
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Layout, PartTensors, Publishing, TrainedParts, part_paths

_LOGIT_SCALE = "text_encoders.{}.logit_scale"
_SCALE_OF_CLIP = 4.6055
"""What sd-scripts writes beside each text encoder, T5 included; nothing reads it."""


@dataclass(frozen=True)
class Sd3Publisher:
    """A `Publisher` of Stable Diffusion 3. A folder is about the denoiser and given text encoders alone.

    Attributes:
        included: text encoders that whole files hold in any case. Others that are given lie beside them if
            the base's own file holds none. None lets whole files hold all that are given.
    """

    base: Sd3Files
    included: Collection[str] | None = None
    layout = Layout.WHOLE_FILE

    @contextmanager
    def files(self, parts: TrainedParts, path: Path, how: Publishing) -> Iterator[Sequence[WeightFile]]:
        """Yield the files of weights; see `Publisher`."""
        if how.layout is Layout.PART_FILES:
            places = part_paths(path, [part for part in PARTS if part in parts])
            own = {place: _published(part, parts[part]) for part, place in places.items()}
            yield [WeightFile(place, tensors, how.metadata, how.dtype) for place, tensors in own.items()]
        elif how.layout is Layout.FOLDER:
            with self._denoiser(parts) as own, ExitStack() as opened:
                transformer = WeightFile(path / WEIGHTS, to_diffusers(own), {"format": "pt"}, how.dtype)
                names = self._in_folder(parts)
                encoders = {PARTS[part].folder: self._state(part, parts, opened) for part in names}
                yield [transformer, *encoder_folders.weight_files(encoders, path, how)]
        else:
            with self._whole_file(parts) as own:
                yield [_whole(path, own, how), *self._beside(parts, path)]

    def copies(self) -> dict[str, Path]:
        """Return nothing: a folder is about the denoiser alone."""
        return {}

    def write_settings(self, parts: TrainedParts, folder: Path, how: Publishing) -> None:
        """Write the settings of what a folder holds, and take over what the reference has."""
        with self._denoiser(parts) as own:
            shape = MMDiTShape.of({name: tensor.shape for name, tensor in own.items()})
        taken_over = ("scheduler", "tokenizer", "tokenizer_2", "tokenizer_3")
        write_settings(folder, folder_settings(shape), how, taken_over)
        models = {PARTS[part].folder: self.base.without_numbers(part) for part in self._in_folder(parts)}
        encoder_folders.write_settings(models, folder)

    @contextmanager
    def _denoiser(self, parts: TrainedParts) -> Iterator[PartTensors]:
        """Yield the denoiser's tensors, those of the base if it was not trained."""
        require_only_denoiser({part: own for part, own in parts.items() if part not in OUTPUTS})
        if DENOISER in parts:
            yield parts[DENOISER]
            return
        with self.base.transformer() as base:
            yield base.tensors

    @contextmanager
    def _whole_file(self, parts: TrainedParts) -> Iterator[dict[str, LazyTensor]]:
        """Yield what the base's file holds, with these parts and the autoencoder in their places.

        Of a base in several files, what was not trained stays there, but for the autoencoder and the text
        encoders that are to be included.
        """
        with ExitStack() as opened:
            base = opened.enter_context(self.base.transformer())
            others = dict(base.others)
            found = _prefixed(PARTS[DENOISER].prefixes[0], parts.get(DENOISER, base.tensors))
            place = prefix_in(others, PARTS[VAE].prefixes) or PARTS[VAE].prefixes[0]
            found |= _prefixed(place, self._autoencoder(parts, opened))
            for part in (part for part in OUTPUTS if self._is_within(part, parts)):
                held = prefix_in(others, PARTS[part].prefixes)
                if held and part not in parts:
                    continue  # it stays as it is
                own = _published(part, self._state(part, parts, opened))
                found |= _prefixed(held or PARTS[part].prefixes[0], own)
                if not held and self.included is not None:
                    found[_LOGIT_SCALE.format(part)] = LazyTensor.foreign(torch.tensor(_SCALE_OF_CLIP))
            yield found | {name: value for name, value in others.items() if name not in found}

    def _autoencoder(self, parts: TrainedParts, opened: ExitStack) -> PartTensors:
        """Return the autoencoder's tensors, as its file has them if it was not trained; none without one."""
        if VAE in parts:
            return _published(VAE, parts[VAE])
        file = opened.enter_context(self.base.parts.opened_if_any(VAE))
        return {} if file is None else _all_of(file)

    def _state(self, part: str, parts: TrainedParts, opened: ExitStack) -> PartTensors:
        """Return a text encoder's tensors, those of the base if it was not trained."""
        if part in parts:
            return parts[part]
        return self.base.complete(part, opened.enter_context(self.base.published(part)))

    def _in_folder(self, parts: TrainedParts) -> list[str]:
        """Return the text encoders that a folder holds."""
        return [part for part in OUTPUTS if part in parts or part in (self.included or ())]

    def _beside(self, parts: TrainedParts, path: Path) -> Iterator[WeightFile]:
        """Yield the files of the text encoders that the whole file does not hold, in their own dtypes."""
        apart = [part for part in OUTPUTS if part in parts and not self._is_within(part, parts)]
        for part, place in part_paths(path, [DENOISER, *apart]).items():
            if part != DENOISER:
                yield WeightFile(place, _published(part, parts[part]))

    def _is_within(self, part: str, parts: TrainedParts) -> bool:
        """Return whether whole files hold a text encoder."""
        if self.included is None:
            return part in parts
        return part in self.included or (part in parts and self.base.parts.is_held(part))


def _whole(path: Path, tensors: PartTensors, how: Publishing) -> WeightFile:
    """Return the file of a model that may be pickled."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        counters = {"epoch": how.epoch, "global_step": how.step}
        return WeightFile(path, tensors, how.metadata, how.dtype, counters)
    check_file(path, TRANSFORMER.what, how)
    return WeightFile(path, tensors, how.metadata, how.dtype)


def _published(part: str, state: PartTensors) -> dict[str, LazyTensor]:
    """Return a part's tensors under the names of published files, without prefix."""
    if part == DENOISER:
        return dict(state)
    if part == VAE:
        return dict(autoencoder.published(state))
    return text_encoders.published_t5(state) if part == T5XXL else text_encoders.published_clip(state)


def _all_of(file: TensorReader) -> dict[str, LazyTensor]:
    return {name: file.lazy(name) for name in file.keys()}  # noqa: SIM118 - a reader is no mapping


def _prefixed(prefix: str, tensors: PartTensors) -> dict[str, LazyTensor]:
    return {prefix + name: value for name, value in tensors.items()}
