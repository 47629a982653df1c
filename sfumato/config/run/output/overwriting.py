"""What happens to files that are there already."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OverwritingConfig:
    """Files that are there already."""

    overwrite: bool = False
    """Write over what another run saved under the same name. Otherwise `sfumato train` stops before it would,
    and the scripts of sd-scripts warn."""
