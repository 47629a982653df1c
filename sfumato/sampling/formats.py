"""In which dtypes the parts of a model are stored, and compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from sfumato.models.interface.family import VAE
from sfumato.nn.precision import check_compute, check_storage, computable, is_storage_only


@dataclass(frozen=True)
class AskedDtype:
    """A dtype, and for messages what asked for it: an option or an argument."""

    dtype: torch.dtype
    asked_by: str


@dataclass(frozen=True)
class Formats:
    """The dtypes of each part, by its name.

    Attributes:
        stored: what the weights are kept in.
        computed: what the part computes in.
    """

    stored: Mapping[str, torch.dtype]
    computed: Mapping[str, torch.dtype]


def formats_for(
    parts: Iterable[str],
    device: torch.device,
    general: AskedDtype,
    own: Mapping[str, AskedDtype] | None = None,
) -> Formats:
    """Return the dtypes of all parts.

    8-bit formats only store, and only what is made of Linear layers.

    Args:
        general: of parts that have none of their own.
        own: by the names of parts.

    Raises:
        UserError: the device cannot do with one of them.
    """
    stored, computed = {}, {}
    for part in parts:
        asked = (own or {}).get(part, general)
        is_computed = computable(asked.dtype) == asked.dtype
        computed[part] = asked.dtype if is_computed else computable(general.dtype)
        stored[part] = computed[part] if part == VAE else asked.dtype
        check_compute(computed[part], device, asked.asked_by)
        if is_storage_only(stored[part]):
            check_storage(device, asked.asked_by)
    return Formats(stored, computed)
