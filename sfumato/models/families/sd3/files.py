"""The files of one Stable Diffusion 3: one with all parts, one for each, or a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.models.components import autoencoder, part_prefixes, text_encoders
from sfumato.models.components.dit.part_files import PartFiles, PartSpec
from sfumato.models.components.dit.transformer_file import OpenTransformer
from sfumato.models.components.tensor_views import Shapes, TensorView, view_of
from sfumato.models.families.sd3.network import MMDiT, MMDiTShape
from sfumato.models.families.sd3.text import CLIP_G, CLIP_L, OUTPUTS, T5XXL
from sfumato.models.families.sd3.transformer import TRANSFORMER, mmdit_shape
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.published import Published
from sfumato.models.interface.publishing import PartTensors

PARTS = {
    DENOISER: PartSpec(
        "pretrained_model_name_or_path",
        "a transformer of Stable Diffusion 3",
        frozenset({"sd3 transformer", "sd3 diffusers"}),
        "transformer",
        part_prefixes.DENOISER,
    ),
    CLIP_L: PartSpec(
        "clip_l",
        "a CLIP-L text encoder",
        frozenset({"clip l", "clip"}),
        "text_encoder",
        part_prefixes.CLIP_L,
    ),
    CLIP_G: PartSpec(
        "clip_g",
        "a CLIP-G text encoder",
        frozenset({"clip g", "clip"}),
        "text_encoder_2",
        part_prefixes.CLIP_G,
    ),
    T5XXL: PartSpec(
        "t5xxl", "a T5-XXL text encoder", frozenset({"t5"}), "text_encoder_3", part_prefixes.T5XXL
    ),
    VAE: PartSpec(
        "vae",
        "the autoencoder of Stable Diffusion 3",
        frozenset({"vae", "vae diffusers"}),
        "vae",
        part_prefixes.VAE,
    ),
}

LATENT_SCALE, LATENT_SHIFT = 1.5305, 0.0609
_ACTIVATIONS = {CLIP_L: "quick_gelu", CLIP_G: "gelu"}
_PROJECTION = "text_projection.weight"
_NORM = "final_layer_norm.weight"


class Sd3Files:
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
            PARTS,
            given,
            use_mmap=use_mmap,
            denoiser_option=denoiser_option,
            access=access,
            is_shared=True,
        )

    def check(self, parts: Sequence[str]) -> None:
        """Read headers; raise UserError if a file is missing, broken or another model's."""
        shapes = {part: self.parts.shapes(part) for part in parts}
        if DENOISER in shapes:
            self._check_widths(shapes)

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load one part, frozen and in eval mode."""
        self.parts.shapes(part)
        path, what, use_mmap = self.parts.existing(part), PARTS[part].what, self.parts.use_mmap
        if part == DENOISER:
            return TRANSFORMER.load(path, dtype, device, use_mmap=use_mmap)
        if part == T5XXL:
            return text_encoders.load_t5(path, dtype, device, use_mmap=use_mmap, what=what)
        if part == VAE:
            return autoencoder.load(path, dtype, device, use_mmap=use_mmap, what=what)
        return self._load_clip(part, dtype, device)

    @contextmanager
    def published(self, part: str) -> Iterator[Published]:
        """Open one part; the denoiser with all text encoders of its file or folder. See `Published`."""
        if part == DENOISER:
            with self._published_base() as opened:
                yield opened
            return
        with self.parts.published(part, self.without_numbers(part)) as opened:
            yield opened

    def without_numbers(self, part: str) -> nn.Module:
        """Return a part on the meta device."""
        return self.load(part, torch.bfloat16, torch.device("meta"))

    def complete(self, part: str, opened: Published) -> PartTensors:
        """Return an open part's tensors with the text projection that a CLIP's file may lack."""
        found = dict(opened.parts[part])
        state = opened.modules[part].state_dict()
        if _PROJECTION in state and _PROJECTION not in found:
            found[_PROJECTION] = LazyTensor.of(torch.eye(len(state[_PROJECTION])))
        return found

    @contextmanager
    def transformer(self) -> Iterator[OpenTransformer[MMDiT]]:
        """Open the denoiser's file."""
        self.parts.shapes(DENOISER)
        with TRANSFORMER.open(self.parts.existing(DENOISER), use_mmap=self.parts.use_mmap) as file:
            yield file

    @contextmanager
    def _published_base(self) -> Iterator[Published]:
        with ExitStack() as stack:
            base = stack.enter_context(self.transformer())
            beside = [part for part in OUTPUTS if self.parts.lies_in_base(part)]
            texts = [stack.enter_context(self.published(part)) for part in beside]
            parts: dict[str, PartTensors] = {DENOISER: base.tensors}
            modules: dict[str, nn.Module] = {DENOISER: base.model}
            for opened in texts:
                parts |= opened.parts
                modules |= opened.modules
            yield Published(parts, modules, base.metadata)

    def shape(self) -> MMDiTShape | None:
        """Return the transformer's sizes; None if it cannot be read, which `check` reports."""
        shapes = self.parts.shapes_or_none(DENOISER)
        try:
            return mmdit_shape(self.parts.existing(DENOISER), shapes) if shapes else None
        except UserError:
            return None

    def width_of(self, encoder: str) -> int | None:
        """Return how wide a text encoder's states are; None if it cannot be read."""
        return _width(self.parts.shapes_or_none(encoder) or {})

    def _load_clip(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        with self.parts.opened(part) as file:
            return text_encoders.load_clip_view(
                _with_projection(view_of(file)),
                dtype,
                device,
                activation=_ACTIVATIONS[part],
                has_projection=True,
                what=PARTS[part].what,
            )

    def _check_widths(self, shapes: Mapping[str, Shapes]) -> None:
        """Raise UserError if the other parts do not fit the denoiser."""
        wanted = mmdit_shape(self.parts.existing(DENOISER), shapes[DENOISER])
        latents = self.parts.autoencoder_shape() if VAE in shapes else None
        widths = {part: _width(shapes.get(part, {})) for part in (CLIP_L, CLIP_G, T5XXL)}
        clips = [widths[part] for part in (CLIP_L, CLIP_G)]
        self._check_width(T5XXL, widths[T5XXL], wanted.text_width)
        self._check_width(VAE, latents.channels if latents else None, wanted.channels)
        if None not in clips and sum(filter(None, clips)) != wanted.pooled_width:
            raise UserError(
                f"{self.parts.named(CLIP_L)}, {self.parts.named(CLIP_G)}: their outputs are "
                f"{clips[0]} and {clips[1]} wide, but the denoiser takes {wanted.pooled_width} in all; give "
                "the text encoders that belong to it"
            )

    def _check_width(self, part: str, width: int | None, wanted: int) -> None:
        if width not in (None, wanted):
            raise UserError(
                f"{self.parts.named(part)}: its output is {width} wide, but the denoiser takes {wanted}; "
                f"give {PARTS[part].what} that belongs to it"
            )


def _width(shapes: Shapes) -> int | None:
    return next((shape[0] for name, shape in shapes.items() if name.endswith(_NORM) and shape), None)


def _with_projection(view: TensorView) -> TensorView:
    """Return a CLIP's tensors with a text projection: where files lack it, it is the identity."""
    width = _width(view.shapes)
    if _PROJECTION in view.shapes or width is None:
        return view
    shapes = {**view.shapes, _PROJECTION: (width, width)}

    def get(name: str) -> Tensor:
        return torch.eye(width) if name == _PROJECTION else view.get(name)

    return replace(view, shapes=shapes, get=get)
