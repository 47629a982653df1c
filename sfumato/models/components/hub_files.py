"""Which files of a repository on the Hub each kind of model needs, and which headers are refused."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial

from sfumato.hub.selection import Wanted
from sfumato.models.components.part_prefixes import VAE, prefix_in
from sfumato.models.components.recognise import describe, recognise
from sfumato.models.components.tensor_views import Shapes

SCHEDULER = "scheduler"
_TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
_PARTS = ("unet", "text_encoder", "vae")


def one_part(folder: str, kinds: Collection[str], prefixes: Iterable[str], what: str) -> Wanted:
    """Return what is needed of a model of which one part is used.

    Args:
        folder: where a folder in diffusers' layout keeps it.
        kinds: as `recognise` names them.
        prefixes: what files may put before its names.
        what: the part, for messages.
    """
    return Wanted((folder,), refusal=partial(_refusal, kinds, tuple(prefixes), what))


def whole_model(parts: Iterable[str], tokenizers: Iterable[str], kinds: Collection[str], what: str) -> Wanted:
    """Return what is needed of a model whose parts are published together.

    Args:
        parts: folders of its parts, the denoiser's first.
        tokenizers: folders of its tokenizers.
        kinds, what: as `one_part` has them.
    """
    refusal = partial(_refusal, kinds, (), what)
    return Wanted((*parts,), settings=(*tokenizers, SCHEDULER), refusal=refusal)


def autoencoder() -> Wanted:
    """Return what is needed of an autoencoder, alone or in a whole model."""
    return one_part("vae", ("vae", "vae diffusers"), VAE, "an autoencoder")


def any_model(variant: str | None = None) -> Wanted:
    """Return what is needed of a model that may be any family's; of one in parts, the denoiser alone."""
    return Wanted(
        _PARTS,
        may_have=("text_encoder_2",),
        settings=(*_TOKENIZERS, SCHEDULER),
        variant=variant,
        instead=Wanted(("transformer",), variant=variant),
    )


SETTINGS = Wanted(settings=(*_TOKENIZERS, SCHEDULER))
"""What surrounds the weights in diffusers' layout."""


def _refusal(kinds: Collection[str], prefixes: tuple[str, ...], what: str, shapes: Shapes) -> str:
    """Return what is wrong with a file that is to hold a part; "" if nothing is."""
    prefix = prefix_in(shapes, prefixes)
    own = {name[len(prefix) :]: shape for name, shape in shapes.items() if name.startswith(prefix)}
    kind = recognise(own)
    return "" if kind is not None and kind.name in kinds else f"{describe(shapes)}; give {what}"
