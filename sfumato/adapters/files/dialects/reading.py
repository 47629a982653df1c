"""Adapter files of any program, read into our names: layer by layer, since files mix dialects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.files.dialects import suffixes
from sfumato.adapters.files.dialects.fusing import Piece, joined
from sfumato.adapters.files.dialects.owners import DENOISER, Owned, is_undotted, owned
from sfumato.adapters.files.dialects.settings import FileSettings, is_wrapped, settings_of
from sfumato.adapters.files.sizes import shapes_of, size_of
from sfumato.adapters.files.soundness import require_sound
from sfumato.adapters.layers import kinds
from sfumato.adapters.layers.lokr import WHOLE
from sfumato.adapters.layers.lora import DOWN
from sfumato.checkpoints.tensors import open_tensors
from sfumato.errors import UserError
from sfumato.models.components import foreign_adapters, text_layers
from sfumato.models.components.recognise import describe
from sfumato.models.interface.layer_names import FamilyNames
from sfumato.models.registry.layer_names import names_for

Layers = dict[str, dict[str, Tensor]]

BUNDLED = "bundle_emb."
"""What stands before the keys of new words that came with an adapter."""
_OF_MODELS = "set_weight"
"""What a norm's scale is read as, which whole models have, too."""
_INPUTS = (DOWN, "hada_w1_b", "diff")
"""Tensors whose second side is the number of a layer's inputs."""


@dataclass(frozen=True)
class AdapterContent:
    """What an adapter file holds.

    Attributes:
        layers: tensors of each layer, all by our names.
        embeddings: those of new words that came with the adapter, by their keys in the file.
        family: that the denoiser's layers are of; None if there are none, or they are not known.
        is_ours: the file has our names.
    """

    layers: Layers
    embeddings: dict[str, Tensor]
    metadata: dict[str, str]
    family: str | None
    is_ours: bool


def read_content(path: Path) -> AdapterContent:
    """Read an adapter file, or a folder that PEFT wrote.

    Raises:
        UserError: it is missing, broken, no adapter, for a model that is none of ours, or not sound.
    """
    with open_tensors(path) as reader:
        tensors, metadata = dict(reader.items()), reader.metadata
    shapes = shapes_of(tensors)
    foreign_adapters.refuse(path, shapes)
    embeddings = {key: tensor for key, tensor in tensors.items() if key.startswith(BUNDLED)}
    raw = by_layer({key: tensor for key, tensor in tensors.items() if key not in embeddings})
    if kind_of(raw) is None:
        *titles, last = (kind.title for kind in kinds.trained())
        raise UserError(f"{path}: {describe(shapes)}; give a {', '.join(titles)} or {last}")
    require_sound(path, raw)
    given = settings_of(path, metadata, any(map(is_wrapped, tensors)))
    layers, family = named(path, {name: _scaled(name, leaves, given) for name, leaves in raw.items()})
    return AdapterContent(layers, embeddings, metadata, family, is_ours=layers.keys() == raw.keys())


def by_layer(tensors: Mapping[str, Tensor]) -> Layers:
    """Return the tensors of each layer, the layers by the file's names and their tensors by ours."""
    layers: Layers = defaultdict(dict)
    for key, tensor in tensors.items():
        if not suffixes.is_bookkeeping(key):
            found = suffixes.split(key)
            layers[found.path] |= suffixes.as_ours(found.leaf, tensor)
    return dict(layers)


def kind_of(layers: Mapping[str, Mapping[str, Tensor]]) -> kinds.Kind | None:
    """Return the kind of adapter that a file's layers are; None if it is none that is known."""
    leaves = {
        leaf for name, own in layers.items() for leaf in own if suffixes.is_leaf(leaf) or is_undotted(name)
    }
    is_model = leaves <= {_OF_MODELS} and not all(map(suffixes.is_leaf, chain(*layers.values())))
    return None if is_model else kinds.of_file([f".{leaf}" for leaf in leaves])


def named(path: Path, raw: Layers) -> tuple[Layers, str | None]:
    """Return the layers by our names, and the family that the denoiser's are of, if it is known.

    Args:
        path: the file, for messages.
        raw: tensors of each layer by the file's name.

    Raises:
        UserError: two names of the file stand for one layer.
    """
    owners = {name: owned(name) for name in raw}
    inputs = {owner.path: _inputs(raw[name]) for name, owner in owners.items() if owner and not owner.encoder}
    family = names_for(inputs)
    encoders = {owner.encoder for owner in owners.values() if owner and owner.encoder}
    pieces: dict[str, list[Piece]] = defaultdict(list)
    for name, owner in owners.items():
        full, piece = _piece(name, owner, raw[name], family, is_only=len(encoders) == 1)
        pieces[full].append(piece)
    return {name: joined(path, own) for name, own in pieces.items()}, family.family if family else None


def _piece(
    name: str, owner: Owned | None, leaves: Mapping[str, Tensor], family: FamilyNames | None, *, is_only: bool
) -> tuple[str, Piece]:
    """Return our name of a layer, with the adapter kind's prefix, and what the file holds of it."""
    if owner is None:
        return name, Piece(name, leaves)
    if owner.encoder:
        return f"{owner.prefix}{_encoder(owner, family, is_only)}_{owner.path}", Piece(name, leaves)
    place = family.places.get(owner.path) if family else None
    own = place.layer.own if place else f"{DENOISER}_{owner.path}"
    return f"{owner.prefix}{own}", Piece(name, leaves, place)


def _encoder(owner: Owned, family: FamilyNames | None, is_only: bool) -> str:
    """Return our name of a text encoder: told by the path, and among those of a kind by its number."""
    kind = text_layers.kind_of(owner.path)
    own = [encoder.own for encoder in family.text_encoders if encoder.kind == kind] if family else []
    if own:
        return own[min(owner.encoder, len(own)) - 1]
    if kind == "t5":
        return "te3"
    return owner.name or ("te" if is_only and owner.encoder == 1 else f"te{owner.encoder}")


def _inputs(leaves: Mapping[str, Tensor]) -> int | None:
    found = (leaves[leaf] for leaf in _INPUTS if leaf in leaves and leaves[leaf].dim() > 1)
    return next((tensor.shape[1] for tensor in found), None)


def _scaled(name: str, leaves: Mapping[str, Tensor], given: FileSettings) -> dict[str, Tensor]:
    """Return a layer's tensors with an alpha, if its kind has one; a missing one does not scale."""
    if "alpha" in leaves:
        return {**leaves, "alpha": leaves["alpha"].reshape(())}
    kind = kinds.loading(leaves)
    if kind is None or not kind.files.is_scaled:
        return dict(leaves)
    owner, rank = owned(name), size_of(shapes_of(leaves)).rank
    settings = given.of(owner.dialect if owner else "")
    if rank is None:
        scale = settings.scale_of_whole(name)
        whole = {leaf: tensor * scale if leaf == WHOLE else tensor for leaf, tensor in leaves.items()}
        return {**whole, "alpha": torch.tensor(1.0)}
    alpha = settings.alpha(name, rank)
    return {**leaves, "alpha": torch.tensor(float(rank) if alpha is None else alpha)}
