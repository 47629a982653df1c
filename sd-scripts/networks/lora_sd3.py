"""The network module of this name, for programs that import it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.dropin import PluginModule

_module = PluginModule("networks.lora_sd3")
create_network = _module.create_network
create_network_from_weights = _module.create_network_from_weights
