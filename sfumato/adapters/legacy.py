"""The name under which drop-in folders written by version 0.1 import `sfumato.dropin`."""

from sfumato.adapters.sd_scripts.network_modules import PluginModule

__all__ = ["PluginModule"]
