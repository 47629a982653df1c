"""Requests with regions: their masks, their sub-prompts, and which adapter acts where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, HasUnet
from sfumato.sampling.effects.regions.division import divided
from sfumato.sampling.effects.regions.layout import Layout
from sfumato.sampling.effects.regions.masks import Masks, read_masks
from sfumato.sampling.effects.regions.texts import regional_texts
from sfumato.sampling.encoding import Text
from sfumato.sampling.loaded_adapters import Attachments
from sfumato.sampling.plan import Plan
from sfumato.sampling.request import Request

Encode = Callable[[Iterable[str]], Mapping[str, Text]]
"""What text encoders make of prompts, by prompt."""


class Regions:
    """The effect that divides images into regions, for requests that ask for it.

    The first adapter acts on the first sub-prompt and in its region, in text encoders as in the UNet, and so
    on. Negative prompts are encoded without adapters.

    Args:
        adapters: live ones, of the whole model; none if they act everywhere, or there are none.
    """

    def __init__(self, adapters: Attachments | None = None) -> None:
        self._adapters = adapters
        self._texts: dict[tuple[int | None, str], Text] = {}

    def encode(self, encode: Encode, requests: Sequence[Request]) -> None:
        """Encode the texts of requests with the adapters of their regions; they are wanted by the effect.

        Raises:
            UserError: there are more adapters than sub-prompts, or they are merged.
        """
        self._texts = {}
        if requests[0].regions is None or not self._adapters:
            return
        _check(self._adapters, requests[0])
        for number, prompts in _by_adapter(requests, len(self._adapters)).items():
            with self._adapters.only(number):
                found = encode(prompts)
            self._texts |= {(number, prompt): found[prompt] for prompt in prompts}

    @contextmanager
    def __call__(self, plan: Plan) -> Iterator[Plan]:
        """Divide the model while the batch is sampled.

        Raises:
            UserError: the model is no UNet, or the image of the regions cannot be read.
        """
        request = plan.requests[0]
        if request.regions is None:
            yield plan
            return
        if not isinstance(plan.family, HasUnet):
            raise UserError("regions are for models that are UNets; leave them out")
        layout = Layout(len(plan.requests), len(request.sub_prompts))
        networks = self._adapters.networks(DENOISER) if self._adapters else []
        texts = regional_texts(plan.conditioning.text, self._rows(plan), layout)
        with divided(plan.model, layout, Masks(_masks(request)), networks):
            yield replace(plan, conditioning=replace(plan.conditioning, text=texts))

    def _rows(self, plan: Plan) -> list[Text]:
        """Return every text that the model is asked with, in the order of a `Layout`."""
        num = len(self._adapters) if self._adapters else 0
        asked = [
            (number if number < num else None, prompt)
            for request in plan.requests
            for number, prompt in enumerate(request.sub_prompts)
        ]
        passes = zip(*(request.passes()[1:] for request in plan.requests), strict=True)
        asked += [(None, prompt) for prompts in passes for prompt in prompts]
        return [self._texts.get(key, plan.texts[key[1]]) for key in asked]


def _check(adapters: Attachments, request: Request) -> None:
    if adapters.is_merged:
        raise UserError("merged adapters act everywhere, not in regions; leave --merge_lora_weights out")
    num_parts = len(request.sub_prompts)
    if len(adapters) > num_parts:
        raise UserError(
            f"'{request.prompt}' has {num_parts} parts, and there are {len(adapters)} adapters; write as many"
        )


def _by_adapter(requests: Sequence[Request], num: int) -> dict[int | None, list[str]]:
    """Return what is encoded with each adapter alone, and without any."""
    found: dict[int | None, list[str]] = {None: []}
    for request in requests:
        for number, prompt in enumerate(request.sub_prompts):
            found.setdefault(number if number < num else None, []).append(prompt)
        found[None] += request.passes()[1:]
    return found


def _masks(request: Request) -> Tensor:
    regions = request.regions
    assert regions is not None
    size = request.width, request.height
    return read_masks(Path(regions.mask), size, len(request.sub_prompts), regions.num_colors)
