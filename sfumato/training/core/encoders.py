"""Which text encoders run once, before training, and which in every step; and in which formats."""

from __future__ import annotations

from collections.abc import Collection

import torch

from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import Family, encoder_use
from sfumato.nn.precision import check_compute
from sfumato.training.core.precision import Precision


def cached_encoders(run: Run, family: Family, trained: Collection[str]) -> list[str]:
    """Return the text encoders whose outputs are computed once.

    Args:
        trained: those whose outputs change during the run.
    """
    if not run[CachingConfig].cache_text_encoder_outputs:
        return []
    asked = encoder_use(family).cached
    constant = [part for part in family.text_outputs if part not in trained]
    return constant if asked is None else [part for part in constant if part in asked]


def check(family: Family, precision: Precision, trained: Collection[str]) -> None:
    """Raise UserError if the device of a text encoder cannot compute in the dtype that it is to have."""
    use = encoder_use(family)
    for part in {*use.dtypes, *use.devices} - {*trained}:
        dtype, device = use.dtypes.get(part, precision.compute), use.devices.get(part, precision.device)
        check_compute(dtype, device, f"--{part}_dtype, or --mixed_precision without it,")


def dtypes_of(family: Family, trained: Collection[str]) -> dict[str, torch.dtype]:
    """Return the storage dtype of text encoders for which options of their own say one."""
    return {part: dtype for part, dtype in encoder_use(family).dtypes.items() if part not in trained}


def devices_of(family: Family, trained: Collection[str]) -> dict[str, torch.device]:
    """Return the devices of text encoders that stay on one of their own."""
    return {part: device for part, device in encoder_use(family).devices.items() if part not in trained}
