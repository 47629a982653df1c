"""What merged files say of themselves."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sfumato.adapters.layers.lora import DOWN
from sfumato.checkpoints import modelspec
from sfumato.checkpoints.header import read_header
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import model_files
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.models.interface.family import Family
from sfumato.models.registry.whole_models import identity_named

logger = logging.getLogger(__name__)

_BASE, _PREDICTION = "ss_base_model_version", "modelspec.prediction_type"
_DEFAULT_MODULE = "networks.lora"


def model_record(
    family: Family, path: Path, source: Path, own: Mapping[str, str], adapters: Sequence[Path]
) -> dict[str, str]:
    """Return the metadata of a model that adapters were merged into.

    Args:
        path: the file to be written.
        source: the model's own, with its metadata `own`.
    """
    now = time.time()
    spec = modelspec.build(
        family.identity, MetadataConfig(), kind="checkpoint", name=path.stem, timestamp=now
    )
    titles = [own.get("modelspec.title", source.stem), *map(_title, adapters)]
    return spec | {"modelspec.merged_from": ", ".join(titles)}


def adapter_record(
    path: Path,
    sources: Sequence[Path],
    tensors: Mapping[str, Tensor],
    *,
    family: str = "",
    is_v2: bool = False,
    has_spec: bool = True,
) -> dict[str, str]:
    """Return the metadata of an adapter that others were merged into.

    Args:
        path: the file to be written.
        tensors: what it will hold.
        family: that the adapters belong to, where they do not say; may be empty if nobody knows.
        is_v2: whether the user says that they belong to version 2.
        has_spec: whether modelspec's fields are wanted.
    """
    metadata = [_metadata(source) for source in sources]
    version = _first(metadata, _BASE)
    bases = sorted({values[_BASE] for values in metadata if _BASE in values})
    if len(bases) > 1:
        logger.warning(
            "the adapters are for different models (%s); none will use all of it", ", ".join(bases)
        )
    v2 = _first(metadata, "ss_v2") or str(is_v2)
    record = {
        "ss_v2": v2,
        "ss_network_module": _first(metadata, "ss_network_module") or _DEFAULT_MODULE,
        "ss_network_dim": _common(_ranks(tensors, is_wide=False) or _ranks(tensors, is_wide=True)),
        "ss_network_alpha": _common(_alphas(tensors)),
    }
    if version:
        record[_BASE] = version
    if wide := _ranks(tensors, is_wide=True):
        record["ss_network_args"] = json.dumps(
            {"conv_dim": _common(wide), "conv_alpha": _common(_alphas(tensors))}
        )
    identity = identity_named(version, family, is_v2=v2 == "True")
    if has_spec and identity is not None:
        identity = replace(identity, prediction_type=_prediction(metadata, identity.prediction_type))
        spec = modelspec.build(identity, MetadataConfig(), kind="lora", name=path.stem, timestamp=time.time())
        record |= spec | {"modelspec.merged_from": ", ".join(map(_title, sources))}
    return record


def _prediction(metadata: Sequence[Mapping[str, str]], usual: str | None) -> str | None:
    """Return what the adapters say that their models predict; None where they differ."""
    told = sorted({values[_PREDICTION] for values in metadata if _PREDICTION in values})
    if len(told) > 1:
        logger.warning("the adapters are for models that predict different things: %s", ", ".join(told))
    return told[0] if len(told) == 1 else None if told else usual


def _title(path: Path) -> str:
    return _metadata(path).get("modelspec.title", path.stem)


def _metadata(path: Path) -> dict[str, str]:
    file, *_ = model_files(path)
    return {} if file.suffix.lower() in PICKLE_SUFFIXES else read_header(file).metadata


def _first(metadata: Sequence[Mapping[str, str]], key: str) -> str | None:
    return next((values[key] for values in metadata if key in values), None)


def _ranks(tensors: Mapping[str, Tensor], *, is_wide: bool) -> list[str]:
    """Return the ranks of layers with kernels above 1x1, or of all others."""
    downs = [tensor for name, tensor in tensors.items() if name.endswith(DOWN)]
    return [str(down.shape[0]) for down in downs if (down.dim() == 4 and down.shape[-1] > 1) == is_wide]


def _alphas(tensors: Mapping[str, Tensor]) -> list[str]:
    return [str(float(tensor)) for name, tensor in tensors.items() if name.endswith(".alpha")]


def _common(values: Sequence[str]) -> str:
    """Return what all values are, or the word for values that differ."""
    return values[0] if len(set(values)) == 1 else "Dynamic"
