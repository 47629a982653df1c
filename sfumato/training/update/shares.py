"""Which weights are stepped together where a run steps them share by share.

A share is one weight, the weights of one block, or about an Nth of all. Each becomes a parameter group of its
own, and none holds weights of different rates.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

from torch import nn

Cut = Callable[[Sequence[nn.Parameter]], Iterable[Sequence[nn.Parameter]]]
"""Parts weights of one rate into shares, in order."""


def divide(groups: Iterable[Mapping[str, Any]], cut: Cut) -> tuple[list[dict[str, Any]], list[int]]:
    """Return a parameter group for each share, and for each of `groups` the number of one with its rate.

    Neighbouring groups that differ in nothing but their weights are cut as if they were one.
    """
    shares: list[dict[str, Any]] = []
    places: list[int] = []
    for settings, alike in groupby(groups, _settings):
        weights = [group["params"] for group in alike]
        places += [len(shares)] * len(weights)
        shares += [{"params": list(share), **settings} for share in cut([*chain(*weights)])]
    return shares, places


def weight_by_weight(weights: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Cut into single weights."""
    return ([weight] for weight in weights)


def by_block(blocks: Iterable[nn.Module]) -> Cut:
    """Return what cuts into the weights of each of `blocks`; those of none are together."""
    owners = {id(weight): number for number, block in enumerate(blocks) for weight in block.parameters()}
    return lambda weights: _collected((owners.get(id(weight), -1), weight) for weight in weights)


def by_size(num: int, num_bytes: int) -> Cut:
    """Return what cuts all weights, of so many bytes together, into `num` shares of about equal size.

    Each is as near to the `num`th part as rates and single weights allow: weights of one rate become so many
    shares as they hold such parts, to the nearest and at least one.
    """

    def cut(weights: Sequence[nn.Parameter]) -> Iterable[list[nn.Parameter]]:
        size = sum(weight.nbytes for weight in weights)
        return _collected(_numbered(weights, size, max(1, (2 * num * size + num_bytes) // (2 * num_bytes))))

    return cut


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _numbered(weights: Iterable[nn.Parameter], size: int, num: int) -> Iterator[tuple[int, nn.Parameter]]:
    """Yield with each weight in which of `num` equal parts of all bytes its middle lies."""
    start = 0
    for weight in weights:
        yield (2 * start + weight.nbytes) * num // (2 * size), weight
        start += weight.nbytes


def _collected(numbered: Iterable[tuple[int, nn.Parameter]]) -> Iterable[list[nn.Parameter]]:
    found: dict[int, list[nn.Parameter]] = defaultdict(list)
    for number, weight in numbered:
        found[number].append(weight)
    return found.values()
