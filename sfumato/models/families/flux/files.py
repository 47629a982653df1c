"""The files of one FLUX.1 model, each of which holds one part: found, checked, loaded and written again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sfumato.checkpoints.tensors import TensorReader, open_tensors
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.fetching import located
from sfumato.hub.selection import Wanted
from sfumato.models.components import autoencoder, hub_files, part_prefixes, text_encoders
from sfumato.models.components.loading import shapes_of
from sfumato.models.components.model_files import open_part
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.tensor_views import Shapes
from sfumato.models.families.flux.packing import PATCH
from sfumato.models.families.flux.transformer import (
    OpenTransformer,
    flux_shape,
    load_transformer,
    open_transformer,
)
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.published import Published

CLIP_L = "clip_l"
T5XXL = "t5xxl"


@dataclass(frozen=True)
class _Part:
    """What is expected of one part's file: words for messages, kinds as `recognise` names them."""

    option: str
    what: str
    kinds: frozenset[str]
    folder: str
    """Where a folder in diffusers' layout keeps it."""
    prefixes: tuple[str, ...]
    """What files may put before its names."""


PARTS = {
    DENOISER: _Part(
        "pretrained_model_name_or_path",
        "a FLUX.1 transformer",
        frozenset({"flux", "flux diffusers"}),
        "transformer",
        part_prefixes.DENOISER,
    ),
    CLIP_L: _Part(
        CLIP_L,
        "a CLIP-L text encoder",
        frozenset({"clip l", "clip"}),
        "text_encoder",
        part_prefixes.CLIP_L,
    ),
    T5XXL: _Part(T5XXL, "a T5-XXL text encoder", frozenset({"t5"}), "text_encoder_2", part_prefixes.T5XXL),
    VAE: _Part(
        "ae", "the autoencoder of FLUX.1", frozenset({"vae", "vae diffusers"}), "vae", part_prefixes.VAE
    ),
}


_OTHER_INPUTS = {
    6: "FLUX.1 Fill, whose denoiser is shown a masked image too",
    2: "FLUX.1 Canny or Depth, whose denoiser is shown a control image too",
}
"""Models with other inputs, by how many times wider than its output a denoiser's input is."""


class FluxFiles:
    """The files of one model.

    Args:
        given: file or folder of each part, where one is given. The denoiser's may be a folder in diffusers'
            layout, where other parts are found too.
        use_mmap: map files into memory instead of reading them plainly.
        denoiser_option: the command-line option that named the denoiser, for messages.
        access: how the hub is reached, where paths are names on it.
    """

    def __init__(
        self,
        given: Mapping[str, Path | None],
        *,
        use_mmap: bool,
        denoiser_option: str,
        access: HubAccess = ANYBODY,
    ) -> None:
        self._given = given
        self._options = {part: spec.option for part, spec in PARTS.items()} | {DENOISER: denoiser_option}
        self._use_mmap = use_mmap
        self._access = access
        self._sources: dict[str, Path | None] = {}

    def source(self, part: str) -> Path | None:
        """Return the file or folder that a part is loaded from; what is on the hub is fetched by now.

        Raises:
            UserError: it cannot be fetched.
        """
        if part not in self._sources:
            self._sources[part] = self._located(part)
        return self._sources[part]

    def check(self, parts: Sequence[str]) -> None:
        """Read headers; raise UserError if a file is missing, broken or another model's."""
        shapes = {part: self._checked_shapes(part) for part in parts}
        if DENOISER in shapes:
            self._check_widths(shapes)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        self._checked_shapes(part)
        path, what, use_mmap = self._existing(part), PARTS[part].what, self._use_mmap
        if part == DENOISER:
            return load_transformer(path, dtype, device, use_mmap=use_mmap)
        if part == CLIP_L:
            return text_encoders.load_clip(path, dtype, device, use_mmap=use_mmap, what=what)
        if part == T5XXL:
            return text_encoders.load_t5(path, dtype, device, use_mmap=use_mmap, what=what)
        return autoencoder.load(path, dtype, device, use_mmap=use_mmap, what=what)

    @contextmanager
    def published(self, part: str) -> Iterator[Published]:
        """Open one part; see `Published`."""
        if part == DENOISER:
            with self.transformer() as base:
                yield Published({part: base.tensors}, {part: base.model}, base.metadata)
            return
        model = self.load(part, torch.bfloat16, torch.device("meta"))
        with self._opened(part) as file:
            names = {name: text_encoders.name_in_file(name, file.keys()) for name in model.state_dict()}
            tensors = {name: file.lazy(found) for name, found in names.items() if found}
            yield Published({part: tensors}, {part: model}, file.metadata)

    @contextmanager
    def transformer(self) -> Iterator[OpenTransformer]:
        """Open the denoiser's file."""
        self._checked_shapes(DENOISER)
        with open_transformer(self._existing(DENOISER), use_mmap=self._use_mmap) as file:
            yield file

    @contextmanager
    def opened(self, part: str) -> Iterator[TensorReader | None]:
        """Open a part where there is a file of it; the denoiser's as it is, with all that lies beside."""
        path = self.source(part)
        if path is None or not path.exists():
            yield None
            return
        is_whole = part == DENOISER
        with open_tensors(path, use_mmap=self._use_mmap) if is_whole else self._opened(part) as file:
            yield file

    def takes_guidance(self) -> bool:
        """Return whether the denoiser was distilled to take a guidance scale, as far as it can be read."""
        shapes = self._shapes_or_none(DENOISER)
        return not shapes or any("guidance" in name for name in shapes)

    def autoencoder_shape(self) -> autoencoder.AutoencoderShape | None:
        """Return the autoencoder's sizes; None if it cannot be read, which `check` reports."""
        shapes = self._shapes_or_none(VAE) or {}
        kind = recognise(shapes)
        is_one = kind is not None and kind.name in PARTS[VAE].kinds
        return autoencoder.told_shape(shapes) if is_one else None

    def _located(self, part: str) -> Path | None:
        """Return the part's place in a folder in diffusers' layout, if that is what was given."""
        spec, given = PARTS[part], self._given[part]
        root = self._root(part) if given else self._root_of_denoiser(part)
        inside = root / spec.folder if root else None
        return inside if inside and inside.is_dir() else root if given else None

    def _root(self, part: str) -> Path | None:
        spec = PARTS[part]
        wanted = hub_files.one_part(spec.folder, spec.kinds, spec.prefixes, spec.what)
        return located(self._given[part], f"--{self._options[part]}", wanted, self._access)

    def _root_of_denoiser(self, part: str) -> Path | None:
        """Return the folder or file that the denoiser lies in; if it is on the hub, with this part too."""
        given, folder = self._given[DENOISER], PARTS[DENOISER].folder
        if given is None or given.exists():
            return given
        source = self.source(DENOISER)
        if source is None or source.name != folder:
            return given
        wanted = Wanted((folder, PARTS[part].folder))
        return located(given, f"--{self._options[DENOISER]}", wanted, self._access)

    def _existing(self, part: str) -> Path:
        path = self.source(part)
        if path is None:
            raise UserError(f"--{self._options[part]} is not given; it must name {PARTS[part].what}")
        if not path.exists():
            raise UserError(f"--{self._options[part]} is {path}, which does not exist; check the path")
        return path

    def _shapes(self, part: str) -> Shapes:
        with self._opened(part) as file:
            return shapes_of(file)

    def _opened(self, part: str) -> TensorReader:
        return open_part(self._existing(part), PARTS[part].prefixes, use_mmap=self._use_mmap)

    def _shapes_or_none(self, part: str) -> Shapes | None:
        """Return a file's shapes; None if it cannot be read, which `check` and `load` report."""
        self.source(part)  # what cannot be fetched is said at once, before anything else is
        try:
            return self._shapes(part)
        except UserError:
            return None

    def _checked_shapes(self, part: str) -> Shapes:
        shapes, spec = self._shapes(part), PARTS[part]
        kind = recognise(shapes)
        if kind is None or kind.name not in spec.kinds:
            with open_tensors(self._existing(part), use_mmap=self._use_mmap) as file:
                told = describe(shapes_of(file))
            raise UserError(f"--{self._options[part]} is {self.source(part)}: {told}; give {spec.what}")
        if part == DENOISER:
            self._check_inputs(shapes)
        return shapes

    def _check_inputs(self, shapes: Shapes) -> None:
        """Raise UserError if the denoiser is shown more than noisy latents."""
        width = flux_shape(self._existing(DENOISER), shapes).in_channels
        output = shapes.get("final_layer.linear.weight") or shapes.get("proj_out.weight") or (width,)
        if other := _OTHER_INPUTS.get(width // max(output[0], 1)):
            raise UserError(
                f"--{self._options[DENOISER]} is {self.source(DENOISER)}: it is {other} (its first layer "
                f"takes {width} values, not {output[0]}); give FLUX.1 dev, schnell or Kontext"
            )

    def _check_widths(self, shapes: Mapping[str, Shapes]) -> None:
        """Raise UserError if the other parts do not fit the denoiser."""
        shape, latents = flux_shape(self._existing(DENOISER), shapes[DENOISER]), self.autoencoder_shape()
        found = {
            CLIP_L: (_width(shapes.get(CLIP_L, {}), "final_layer_norm.weight"), shape.pooled_width),
            T5XXL: (_width(shapes.get(T5XXL, {}), "final_layer_norm.weight"), shape.text_width),
            VAE: (PATCH**2 * latents.channels if VAE in shapes and latents else None, shape.in_channels),
        }
        for part, (width, wanted) in found.items():
            if width not in (None, wanted):
                raise UserError(
                    f"--{self._options[part]} is {self.source(part)}: its output is {width} wide, but the "
                    f"denoiser takes {wanted}; give {PARTS[part].what} that belongs to it"
                )


def _width(shapes: Shapes, ending: str) -> int | None:
    return next((shape[0] for name, shape in shapes.items() if name.endswith(ending) and shape), None)
