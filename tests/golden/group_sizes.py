"""What was recorded of groups of parameters."""

from torch import nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork


def recorded_size(network: AdapterNetwork, parameters: list[nn.Parameter]) -> tuple[int, int]:
    """Count as was recorded: before the adapter was applied, while adapted layers were parts of it."""
    ids = {id(parameter) for parameter in parameters}
    own = [
        parameter
        for layer in network.layers
        if isinstance(layer, Lora) and id(layer.lora_down.weight) in ids
        for parameter in layer.target.module.parameters()
    ]
    everything = [*parameters, *own]
    return len(everything), sum(parameter.numel() for parameter in everything)
