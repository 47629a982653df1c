"""The beginning of a layer's path in an adapter file: which part of the model the layer belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.lora import PREFIX
from sfumato.models.components import text_layers
from sfumato.models.interface.layer_names import flat

DENOISER = "unet"
"""What our adapter files call the denoiser, of whatever family."""

_WRAPPED = re.compile(r"(?:unet\.)?base_model\.model\.")
_DENOISER = re.compile(r"(?:(?:model\.)?diffusion_model\.|transformer\.|unet\.)+")
_ENCODERS = re.compile(
    r"text_encoders\.(?P<name>clip_l|clip_g|clip_h|t5xxl)\.(?:transformer\.)?"
    r"|text_encoder(?:_(?P<number>[123]))?\.(?:base_model\.model\.)?"
)
_NUMBERS = {"clip_l": 1, "clip_h": 1, "clip_g": 2, "t5xxl": 3}
_FLAT = re.compile(
    r"(?P<kind>[A-Za-z0-9]+_)"
    r"(?:(?P<denoiser>unet)|(?P<te>te(?P<short>\d?))|text_encoder(?:_(?P<long>[23]))?)_(?P<path>\w+)"
)
_OTHERS = re.compile(r"(?P<kind>lora_|oft_)transformer_(?P<path>\w+)|lycoris_(?P<rest>\w+)")
_LYCORIS = "lycoris_"


@dataclass(frozen=True)
class Owned:
    """A layer, by the part that it belongs to.

    Attributes:
        prefix: of the adapter's kind, `lora_` where a program has none.
        path: within the part, its dots being underscores.
        encoder: number of the text encoder from 1, as far as the file tells; 0 for the denoiser.
        name: what the file calls a text encoder, if it is a name that our files may have, too.
        dialect: what the file calls the part, where it has dotted paths; settings are found by it.
    """

    prefix: str
    path: str
    encoder: int = 0
    name: str = ""
    dialect: str = ""


def owned(path: str) -> Owned | None:
    """Return whose layer a path is; None if it is a name of ours that tells no part."""
    if match := _FLAT.fullmatch(path):
        return _of_flat(match)
    if match := _OTHERS.fullmatch(path):
        return _placed(Owned(match["kind"] or PREFIX, match["path"] or match["rest"]))
    if is_undotted(path):
        return None
    bare = path if _ENCODERS.match(path) else _WRAPPED.sub("", path, count=1)
    if match := _ENCODERS.match(bare):
        return _of_encoder(match, bare[match.end() :])
    match = _DENOISER.match(bare)
    rest = bare[match.end() :] if match else bare
    return _placed(Owned(PREFIX, flat(rest), dialect=match[0].partition(".")[0] if match else ""))


def is_undotted(path: str) -> bool:
    """Return whether a path is the name of a layer without dots, as our own files have it."""
    is_ours = path.startswith(kinds.prefixes()) and "." not in path
    return is_ours or bool(_FLAT.fullmatch(path) or _OTHERS.fullmatch(path))


def _of_encoder(match: re.Match[str], path: str) -> Owned:
    number = _NUMBERS[match["name"]] if match["name"] else int(match["number"] or 1)
    return Owned(PREFIX, text_layers.plain(flat(path)), number, dialect=match[0].partition(".")[0])


def _of_flat(match: re.Match[str]) -> Owned:
    prefix = PREFIX if match["kind"] == _LYCORIS else match["kind"]
    if match["denoiser"]:
        return _placed(Owned(prefix, match["path"]))
    path = text_layers.plain(match["path"])
    return Owned(prefix, path, int(match["short"] or match["long"] or 1), name=match["te"] or "")


def _placed(layer: Owned) -> Owned:
    """Return a layer that is said to be the denoiser's, unless its path is one of a text encoder."""
    path = text_layers.plain(layer.path)
    kind = text_layers.kind_of(path)
    return Owned(layer.prefix, path, 1 if kind == "clip" else 3) if kind else layer
