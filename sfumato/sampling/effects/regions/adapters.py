"""Adapters that act in one region of an image each."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn

from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.sampling.effects.regions.layout import Layout
from sfumato.sampling.effects.regions.place import Place

Change = Callable[[Tensor, Tensor], Tensor]
"""`change(inputs, output) -> output`: a layer's output with an adapter at work in its region."""


@contextmanager
def detached(networks: Iterable[AdapterNetwork]) -> Iterator[None]:
    """Take attached adapters off the model within the block."""
    with ExitStack() as later:
        for network in networks:
            network.detach()
            later.callback(network.attach)
        yield


@contextmanager
def confined(
    networks: Sequence[AdapterNetwork],
    layout: Layout,
    place: Place,
    *,
    readers: Collection[nn.Module],
    left_out: Collection[nn.Module],
) -> Iterator[None]:
    """Let adapters that are detached act within the block: network i for sub-prompt i, where its mask is.

    Args:
        readers: layers that are shown texts; there, an adapter changes the rows of its sub-prompt.
        left_out: layers whose adapters somebody else takes care of.
    """
    with ExitStack() as hooks:
        for number, network in enumerate(networks):
            for layer in network.layers:
                module = layer.target.module
                if module in left_out:
                    continue
                if module in readers:
                    change = _of_rows(layer, layout.rows_of(number))
                else:
                    change = _of_region(layer, place, number, layout.num_prompts)
                hooks.callback(module.register_forward_hook(_hook(change)).remove)
        yield


def _hook(change: Change) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    return lambda _, inputs, output: change(inputs[0], output)


def _of_rows(layer: AdapterLayer, rows: slice) -> Change:
    def change(inputs: Tensor, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[rows] = layer.change(inputs[rows], output[rows])
        return changed

    return change


def _of_region(layer: AdapterLayer, place: Place, number: int, num_prompts: int) -> Change:
    # What a layer makes of the timestep has no place. sd-scripts knows one of the two names of such layers,
    # and has adapters act there in full; under the other one they share.
    everywhere = 1.0 if "time_emb" in layer.target.name else 1 / num_prompts

    def change(inputs: Tensor, output: Tensor) -> Tensor:
        changed = layer.change(inputs, output)
        if output.dim() == 2:
            return output + everywhere * (changed - output)
        masks = place.of_pixels(output) if output.dim() == 4 else place.of_tokens(output)
        return output + masks[number] * (changed - output)

    return change
