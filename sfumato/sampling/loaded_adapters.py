"""Adapter files at work on a model whose parts come and go: `file;0.8`, several at once, live or merged."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato.adapters.files.dialects.reading import read_content
from sfumato.adapters.network.loading import is_known, layers_from
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.placement import owners_of, require_placed
from sfumato.adapters.words.bundle import bundled_words
from sfumato.adapters.words.vocabulary import LearnedWord
from sfumato.diffusion.samplers import Denoise
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import AdapterTarget, every_target
from sfumato.sampling.plan import Plan

logger = logging.getLogger(__name__)


ALL_STEPS = (0.0, 1.0)
_SAME_LEVEL = 1e-6
"""Relative difference up to which noise levels are the same."""


@dataclass(frozen=True)
class AdapterFile:
    """One adapter file and how strongly it acts.

    Attributes:
        allow_partial: layers that fit nothing are left out instead of refused.
        span: shares of the steps from which and until which it acts on the denoiser, in [0, 1].
        layer_weights: what the strength of some layers is multiplied by, and a pattern that their names hold.
    """

    path: Path
    strength: float = 1.0
    allow_partial: bool = False
    span: tuple[float, float] = ALL_STEPS
    layer_weights: tuple[tuple[re.Pattern[str], float], ...] = ()

    def asked(self, strength: float) -> str:
        """Return how the file would be asked for, but for its folder, with this strength."""
        steps = [] if self.span == ALL_STEPS else [f"steps={self.span[0]:g}-{self.span[1]:g}"]
        layers = [f"layers={pattern.pattern}:{weight:g}" for pattern, weight in self.layer_weights]
        return ";".join([self.path.name, f"{strength:g}", *steps, *layers])

    def weight_of(self, layer: str) -> float:
        """Return what the strength of a layer is multiplied by."""
        return math.prod(weight for pattern, weight in self.layer_weights if pattern.search(layer))


def parse_adapter(text: str, *, allow_partial: bool = False) -> AdapterFile:
    """Read `file`, `file;strength`, and what may follow: `;steps=0.2-0.8`, `;layers=pattern:weight`.

    Raises:
        UserError: there is no such file, or something behind it cannot be read.
    """
    name, *pieces = text.split(";")
    strength = pieces.pop(0) if pieces and "=" not in pieces[0] else ""
    try:
        number = float(strength or 1)
    except ValueError:
        raise UserError(f"--lora_weights {text}: '{strength}' is no strength; write file;0.8") from None
    file = AdapterFile(Path(name), number, allow_partial)
    for piece in pieces:
        file = _with_setting(file, piece, text)
    if not file.path.exists():
        raise UserError(f"--lora_weights {text}: there is no file {name}; check the path")
    return file


def _with_setting(file: AdapterFile, piece: str, text: str) -> AdapterFile:
    key, _, value = piece.partition("=")
    try:
        if key == "steps":
            start, end = map(float, value.split("-"))
            if not 0 <= start < end <= 1:  # it would act in no step
                raise ValueError(value)
            return replace(file, span=(start, end))
        if key == "layers":
            pattern, _, weight = value.rpartition(":")
            weighed = (re.compile(pattern), float(weight))
            return replace(file, layer_weights=(*file.layer_weights, weighed))
    except (ValueError, re.error):
        pass
    raise UserError(
        f"--lora_weights {text}: '{piece}' cannot be read; write steps=0.2-0.8 or layers=double_blocks:0.5"
    )


class Attachments:
    """Brings adapters to each part after it has been loaded: the `on_load` of a pipeline.

    Args:
        family: whose layers the files adapt.
        files: all are read at once, so that a broken one is found before a model loads.
        dtype: of live adapters.
        is_merged: whether the change is written into the weights (quicker steps, strengths stay as they are).
        is_reversible: with `is_merged`, keep the weights in RAM, and merge anew where strengths change.

    Attributes:
        words: new words that came with the files.

    Raises:
        UserError: a file is broken or holds no adapter of a kind that is known.
    """

    def __init__(
        self,
        family: Family,
        files: Sequence[AdapterFile],
        *,
        dtype: torch.dtype,
        is_merged: bool = False,
        is_reversible: bool = False,
    ) -> None:
        self._family = family
        self._dtype = dtype
        self._is_merged = is_merged
        self._originals: dict[nn.Parameter, Tensor] | None = {} if is_merged and is_reversible else None
        self.words: list[LearnedWord] = []
        self._adapters = [_Adapter(file, self._read(file.path)) for file in files]
        if is_merged and any(file.span != ALL_STEPS for file in files):
            raise UserError("merged adapters act in all steps; leave out --merge_lora_weights or steps=")

    def _read(self, path: Path) -> dict[str, dict[str, Tensor]]:
        """Return the layers of a file, and remember the words that came with it."""
        content = read_content(path)
        self.words += bundled_words(path, content.embeddings, self._family)
        return content.layers

    def check(self) -> None:
        """Raise UserError unless the files fit the model, of which no weight is loaded for it."""
        if not self._adapters:
            return
        targets: list[AdapterTarget] = []
        for part in (*self._family.text_outputs, DENOISER):
            module = self._family.load(part, self._dtype, torch.device("meta"))
            targets += every_target(self._family, part, module)
        for adapter in self._adapters:
            adapter.check(targets)

    def __call__(self, part: str, module: nn.Module) -> None:
        """Let the adapters act on a part that has just been loaded."""
        targets = list(every_target(self._family, part, module)) if self._adapters else []
        for adapter in self._adapters:
            network = adapter.network(part, targets)
            adapter.weigh(network, adapter.strength)
            if self._is_merged:
                self._merge(adapter, part, network)
            else:
                network.requires_grad_(False).to(next(module.parameters()).device, self._dtype)
                network.attach()
                adapter.networks[part] = network

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def is_merged(self) -> bool:
        """Whether the changes are written into the weights."""
        return self._is_merged

    def networks(self, part: str) -> list[AdapterNetwork]:
        """Return the live adapters of a part that is loaded, in the order of the files."""
        return [adapter.networks[part] for adapter in self._adapters]

    def only(self, number: int | None) -> AbstractContextManager[None]:
        """Have the adapter of that number act alone within the context, or none at all."""
        strengths = enumerate(adapter.strength for adapter in self._adapters)
        return self.at([strength if place == number else 0.0 for place, strength in strengths])

    def set_strengths(self, strengths: Sequence[float] | None) -> None:
        """Set how strongly each adapter acts from now on; None stands for the strengths of the start.

        Raises:
            UserError: the adapters are merged, or there are more or fewer of them.
        """
        chosen = [adapter.file.strength for adapter in self._adapters] if strengths is None else [*strengths]
        if len(chosen) != len(self._adapters):
            raise UserError(
                f"{len(chosen)} adapter strengths for {len(self._adapters)} adapters; give as many"
            )
        changed = chosen != [adapter.strength for adapter in self._adapters]
        if self._is_merged and changed and self._originals is None:
            raise UserError("merged adapters keep their strength; leave --merge_lora_weights out")
        for adapter, strength in zip(self._adapters, chosen, strict=True):
            adapter.set_strength(strength)
        if changed and self._originals is not None:
            self._merge_anew(self._originals)

    def _merge(self, adapter: _Adapter, part: str, network: AdapterNetwork) -> None:
        if self._originals is not None:
            changed = {weight for layer in network.layers for weight in layer.target.module.parameters()}
            for weight in changed - self._originals.keys():
                self._originals[weight] = weight.detach().to("cpu", copy=True)
            adapter.networks[part] = network
        network.merge()

    def _merge_anew(self, originals: Mapping[nn.Parameter, Tensor]) -> None:
        for weight, original in originals.items():
            weight.data.copy_(original)
        for adapter in self._adapters:
            for network in adapter.networks.values():
                network.merge()

    @contextmanager
    def at(self, strengths: Sequence[float] | None) -> Iterator[None]:
        """Let the adapters act with these strengths within the context; None leaves them as they are.

        Raises:
            UserError: as `set_strengths` has it.
        """
        if strengths is None:
            yield
            return
        before = [adapter.strength for adapter in self._adapters]
        self.set_strengths(strengths)
        try:
            yield
        finally:
            self.set_strengths(before)

    @contextmanager
    def spans(self, plan: Plan) -> Iterator[Plan]:
        """Have each file act on the denoiser in its steps alone; an `Effect`."""
        spanning = [adapter for adapter in self._adapters if adapter.file.span != ALL_STEPS]
        if not spanning:
            yield plan
            return
        levels = plan.space.sigmas(plan.requests[0])[:-1]

        def guide(denoise: Denoise) -> Denoise:
            def at_its_time(x: Tensor, sigma: float) -> Tensor:
                share = float((levels > sigma * (1 + _SAME_LEVEL)).float().mean())
                for adapter in spanning:
                    adapter.act_at(share)
                return denoise(x, sigma)

            return at_its_time

        try:
            yield replace(plan, guides=(*plan.guides, guide))
        finally:
            for adapter in spanning:
                adapter.set_strength(adapter.strength)

    def names(self) -> list[str]:
        """Return the files and the strengths at which they act now, as they would be asked for."""
        return [adapter.file.asked(adapter.strength) for adapter in self._adapters]


class _Adapter:
    """One file's layers, and the networks made of them so far, one for each part."""

    def __init__(self, file: AdapterFile, layers: dict[str, dict[str, Tensor]]) -> None:
        self.file = file
        self.strength = file.strength
        self.networks: dict[str, AdapterNetwork] = {}
        self._layers = layers

    def network(self, part: str, targets: Iterable[AdapterTarget]) -> AdapterNetwork:
        """Return the adapters of one part, loaded and in eval mode."""
        known = {name: tensors for name, tensors in self._layers.items() if is_known(name, tensors)}
        network = AdapterNetwork(layers_from(self.file.path, known, targets))
        if own := {layer.name: known[layer.name] for layer in network.layers}:
            network.load_layers(self.file.path, own)
        logger.info("%s at strength %g on %s: %s", self.file.path, self.strength, part, network.describe())
        return network.eval()

    def set_strength(self, strength: float) -> None:
        self.strength = strength
        for network in self.networks.values():
            self.weigh(network, strength)

    def act_at(self, share: float) -> None:
        """Let the layers of the denoiser act after this share of the steps, or not."""
        first, end = self.file.span
        if network := self.networks.get(DENOISER):
            self.weigh(network, self.strength if first <= share < end else 0.0)

    def weigh(self, network: AdapterNetwork, strength: float) -> None:
        """Set how strongly a network acts, layer by layer where the file says so."""
        network.set_strength(strength)
        if self.file.layer_weights:
            for layer in network.layers:
                layer.strength = strength * self.file.weight_of(layer.name)

    def check(self, targets: Collection[AdapterTarget]) -> None:
        """Raise UserError if there is no place for layers of the file, or no layer for a weight."""
        for pattern, weight in self.file.layer_weights:
            if not any(map(pattern.search, self._layers)):
                asked = f"--lora_weights {self.file.path.name};layers={pattern.pattern}:{weight:g}"
                first = next(iter(self._layers), "")
                raise UserError(f"{asked} fits no layer; they are called {first} ..., so write part of that")
        names = {target.name for target in targets}
        placed = {
            name
            for name, tensors in self._layers.items()
            if name.partition("_")[2] in names and is_known(name, tensors)
        }
        is_partial = self.file.allow_partial
        require_placed(self.file.path, self._layers, placed, owners_of(targets), is_partial=is_partial)
