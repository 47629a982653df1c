"""The layers of transformers that adapters attach to, and their names in files."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from sfumato.models.interface.targets import AdapterTarget


def t5_targets(model: nn.Module, part: str, owner: str) -> Iterator[AdapterTarget]:
    """Yield the attention and feed-forward layers of T5.

    Args:
        owner: what files put before a layer's path.
    """
    for index, block in enumerate(model.get_submodule("encoder.block").children()):
        for path, layer in linears(block):
            name = joined(owner, f"encoder.block.{index}.{path}")
            yield AdapterTarget(name, layer, part, path.split(".")[-2], ("layer", index))


def linears(
    module: nn.Module, kinds: tuple[type[nn.Module], ...] = (nn.Linear,)
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the layers of these kinds in a module with their paths; "" is the module itself."""
    for path, layer in module.named_modules():
        if isinstance(layer, kinds):
            yield path, layer


def joined(owner: str, path: str) -> str:
    """Return a layer's name in files."""
    return f"{owner}_{path}".replace(".", "_")
