"""The files of one FLUX.1 model, each of which holds one part: found, checked, loaded and written again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.models.components import autoencoder, part_prefixes, text_encoders
from sfumato.models.components.dit.part_files import PartFiles, PartSpec
from sfumato.models.components.dit.transformer_file import OpenTransformer
from sfumato.models.components.tensor_views import Shapes
from sfumato.models.families.flux.network import Flux
from sfumato.models.families.flux.packing import PATCH
from sfumato.models.families.flux.transformer import TRANSFORMER, flux_shape
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.published import Published

CLIP_L = "clip_l"
T5XXL = "t5xxl"


PARTS = {
    DENOISER: PartSpec(
        "pretrained_model_name_or_path",
        "a FLUX.1 transformer",
        frozenset({"flux", "flux diffusers"}),
        "transformer",
        part_prefixes.DENOISER,
    ),
    CLIP_L: PartSpec(
        CLIP_L,
        "a CLIP-L text encoder",
        frozenset({"clip l", "clip"}),
        "text_encoder",
        part_prefixes.CLIP_L,
    ),
    T5XXL: PartSpec(T5XXL, "a T5-XXL text encoder", frozenset({"t5"}), "text_encoder_2", part_prefixes.T5XXL),
    VAE: PartSpec(
        "ae", "the autoencoder of FLUX.1", frozenset({"vae", "vae diffusers"}), "vae", part_prefixes.VAE
    ),
}


_OTHER_INPUTS = {
    6: "FLUX.1 Fill, whose denoiser is shown a masked image too",
    2: "FLUX.1 Canny or Depth, whose denoiser is shown a control image too",
}
"""Models with other inputs, by how many times wider than its output a denoiser's input is."""


class FluxFiles:
    """The files of one model; arguments are those of `PartFiles`."""

    def __init__(
        self,
        given: Mapping[str, Path | None],
        *,
        use_mmap: bool,
        denoiser_option: str,
        access: HubAccess = ANYBODY,
    ) -> None:
        self.parts = PartFiles(
            PARTS, given, use_mmap=use_mmap, denoiser_option=denoiser_option, access=access
        )

    def check(self, parts: Sequence[str]) -> None:
        """Read headers; raise UserError if a file is missing, broken or another model's."""
        shapes = {part: self._checked_shapes(part) for part in parts}
        if DENOISER in shapes:
            self._check_widths(shapes)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        self._checked_shapes(part)
        path, what, use_mmap = self.parts.existing(part), PARTS[part].what, self.parts.use_mmap
        if part == DENOISER:
            return TRANSFORMER.load(path, dtype, device, use_mmap=use_mmap)
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
        with self.parts.published(part, model) as opened:
            yield opened

    @contextmanager
    def transformer(self) -> Iterator[OpenTransformer[Flux]]:
        """Open the denoiser's file."""
        self._checked_shapes(DENOISER)
        with TRANSFORMER.open(self.parts.existing(DENOISER), use_mmap=self.parts.use_mmap) as file:
            yield file

    def takes_guidance(self) -> bool:
        """Return whether the denoiser was distilled to take a guidance scale, as far as it can be read."""
        shapes = self.parts.shapes_or_none(DENOISER)
        return not shapes or any("guidance" in name for name in shapes)

    def _checked_shapes(self, part: str) -> Shapes:
        shapes = self.parts.shapes(part)
        if part == DENOISER:
            self._check_inputs(shapes)
        return shapes

    def _check_inputs(self, shapes: Shapes) -> None:
        """Raise UserError if the denoiser is shown more than noisy latents."""
        width = flux_shape(self.parts.existing(DENOISER), shapes).in_channels
        output = shapes.get("final_layer.linear.weight") or shapes.get("proj_out.weight") or (width,)
        if other := _OTHER_INPUTS.get(width // max(output[0], 1)):
            raise UserError(
                f"{self.parts.named(DENOISER)}: it is {other} (its first layer "
                f"takes {width} values, not {output[0]}); give FLUX.1 dev, schnell or Kontext"
            )

    def _check_widths(self, shapes: Mapping[str, Shapes]) -> None:
        """Raise UserError if the other parts do not fit the denoiser."""
        shape, latents = (
            flux_shape(self.parts.existing(DENOISER), shapes[DENOISER]),
            self.parts.autoencoder_shape(),
        )
        found = {
            CLIP_L: (_width(shapes.get(CLIP_L, {}), "final_layer_norm.weight"), shape.pooled_width),
            T5XXL: (_width(shapes.get(T5XXL, {}), "final_layer_norm.weight"), shape.text_width),
            VAE: (PATCH**2 * latents.channels if VAE in shapes and latents else None, shape.in_channels),
        }
        for part, (width, wanted) in found.items():
            if width not in (None, wanted):
                raise UserError(
                    f"{self.parts.named(part)}: its output is {width} wide, but the "
                    f"denoiser takes {wanted}; give {PARTS[part].what} that belongs to it"
                )


def _width(shapes: Shapes, ending: str) -> int | None:
    return next((shape[0] for name, shape in shapes.items() if name.endswith(ending) and shape), None)
