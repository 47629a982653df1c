"""The door for network modules in drop-in folders: `sfumato sd-scripts FOLDER` writes files that import this.

Such folders stay where they were written when the package is updated, so the names here do not change.
"""

from sfumato.adapters.sd_scripts import block_helpers
from sfumato.adapters.sd_scripts.network_modules import PluginModule

__all__ = ["PluginModule", "block_helpers"]
