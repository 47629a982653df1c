"""The strings that files carry beside their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MINIMUM = frozenset(
    {
        "ss_v2",
        "ss_base_model_version",
        "ss_network_module",
        "ss_network_dim",
        "ss_network_alpha",
        "ss_network_args",
    }
)
_ALWAYS = ("modelspec.", "sshs_")


def minimum_set(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a file keeps even if its maker wants no metadata: what is needed to load it, and hashes."""
    return {key: value for key, value in metadata.items() if key in _MINIMUM or key.startswith(_ALWAYS)}


def as_strings(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as files hold them: text stays, everything else is written as Python prints it."""
    return {key: value if isinstance(value, str) else str(value) for key, value in values.items()}
