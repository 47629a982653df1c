"""A UNet divided into regions: all hooks on it, put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch import nn

from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.sampling.effects.regions.adapters import confined, detached
from sfumato.sampling.effects.regions.attention import RegionalProcessor
from sfumato.sampling.effects.regions.layout import Layout
from sfumato.sampling.effects.regions.masks import Masks
from sfumato.sampling.effects.regions.place import Place


@contextmanager
def divided(
    unet: nn.Module, layout: Layout, masks: Masks, networks: Sequence[AdapterNetwork] = ()
) -> Iterator[None]:
    """Divide a UNet into regions within the block; it then reads texts in the order of the layout.

    Args:
        masks: of each sub-prompt.
        networks: attached adapters of the UNet, the first for the first sub-prompt and so on.
    """
    attentions, place = _cross_attentions(unet), Place(masks)
    readers = {layer for attn in attentions for layer in (attn.to_k, attn.to_v)}
    by_end = {attn.to_out[0]: attn for attn in attentions}
    at_ends = _adapters_of(by_end, networks)
    with ExitStack() as stack:
        stack.enter_context(place.followed(unet))
        stack.enter_context(detached(networks))
        stack.enter_context(confined(networks, layout, place, readers=readers, left_out=by_end))
        for end, attn in by_end.items():
            stack.callback(attn.set_processor, attn.processor)
            attn.set_processor(RegionalProcessor(layout, place, at_ends[end]))
        yield


def _adapters_of(
    layers: Iterable[nn.Module], networks: Sequence[AdapterNetwork]
) -> dict[nn.Module, dict[int, AdapterLayer]]:
    """Return the adapters of each of these layers, by the number of their network."""
    found: dict[nn.Module, dict[int, AdapterLayer]] = {layer: {} for layer in layers}
    for number, network in enumerate(networks):
        for adapter in network.layers:
            if adapter.target.module in found:
                found[adapter.target.module][number] = adapter
    return found


def _cross_attentions(unet: nn.Module) -> list[Any]:
    return [cast(Any, module) for name, module in unet.named_modules() if name.endswith(".attn2")]
