"""The network module of this name, for programs that import it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.dropin import PluginModule, block_helpers

_module = PluginModule("networks.lora")
create_network = _module.create_network
create_network_from_weights = _module.create_network_from_weights
get_block_index = block_helpers.get_block_index
get_block_lr_weight = block_helpers.get_block_lr_weight
remove_block_dims_and_alphas = block_helpers.remove_block_dims_and_alphas
get_block_dims_and_alphas = block_helpers.get_block_dims_and_alphas
parse_block_lr_kwargs = block_helpers.parse_block_lr_kwargs
