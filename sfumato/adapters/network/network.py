"""All adapters of one run as a whole: what training and generation may ask of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sfumato.adapters.files.adapter_file import read_adapter, write_adapter
from sfumato.adapters.layers.ggpo import Noise
from sfumato.adapters.layers.layer import (
    AdapterLayer,
    LimitsNorm,
    Strength,
    as_module,
    attach,
    limit_norm,
    merge,
)
from sfumato.adapters.network.load_weights import fill
from sfumato.adapters.network.rates import PLAIN_RATES, Grouping, ParameterGroup, Rates
from sfumato.models.interface.targets import AdapterTarget
from sfumato.transfer import copied

LayerFactory = Callable[[AdapterTarget], AdapterLayer | None]
"""Makes the adapter of a layer, or None where the layer stays as it is."""


UNSAVED = "unsaved/"
"""What stands before the names of buffers that a network's own state leaves out."""


class Network(Protocol):
    """What training knows of adapters, ours or a foreign module's."""

    @property
    def trainable(self) -> nn.Module:
        """The module to train: its parameters, mode, device and state."""
        ...

    def attach(self) -> None:
        """Let the adapters act on the model; calling it twice changes nothing."""
        ...

    def detach(self) -> None:
        """Leave the model as it was without the adapters."""
        ...

    def set_strength(self, strength: Strength) -> None:
        """Set how strongly all adapters act: one number, or (B,), one per sample of the next batch."""
        ...

    def parameter_groups(
        self, default_lr: float | None, denoiser_lr: float | None, text_encoder_lrs: Sequence[float] | None
    ) -> list[ParameterGroup]:
        """Return what to train at which rate; parts whose rate is 0 are left out.

        Args:
            default_lr: for parts without a rate of their own.
            denoiser_lr: the denoiser's rate.
            text_encoder_lrs: rates of the text encoders in order; one rate is for all of them.
        """
        ...

    def enable_checkpointing(self) -> None:
        """Say that the model recomputes activations in the backward pass."""
        ...

    def on_epoch_start(self) -> None:
        """Get ready for an epoch: training mode above all."""
        ...

    def on_step_start(self) -> None:
        """Get ready for an optimizer step."""
        ...

    def on_step_end(self) -> dict[str, Tensor]:
        """Take note of an optimizer step, whose gradients are still there; return figures for logs, 0-d."""
        ...

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Return all that a resumed run must know, by name: the live tensors themselves.

        A name that begins with `UNSAVED` is a buffer that is made anew with the network, and rarely changed.
        """
        ...

    @property
    def can_limit_norms(self) -> bool:
        """Whether `limit_norms` may be called."""
        ...

    def limit_norms(self, limit: float) -> dict[str, Tensor]:
        """Scale every layer's change down to a norm of `limit` at most.

        Returns:
            Figures for logs, 0-d on the device: `max_norm/keys_scaled`, `max_norm/average_key_norm` and
            `max_norm/max_key_norm`.
        """
        ...

    def save(self, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Write the adapter file; `dtype` None keeps what was trained."""
        ...

    def snapshot(
        self, dtype: torch.dtype | None, metadata: Mapping[str, str]
    ) -> Callable[[Path], None] | None:
        """Return what writes the file that `save` would write now, at any time and from any thread.

        It holds a copy of the weights in RAM. None where only `save` can write.
        """
        ...

    def load(self, path: Path) -> str:
        """Load weights of an adapter file and return one line that says what was loaded.

        Raises:
            UserError: nothing in the file fits, or shapes differ.
        """
        ...

    def describe(self) -> str:
        """Return one line that says what is adapted."""
        ...


class AdapterNetwork(nn.Module):
    """Adapters of our own kinds; its state's names are exactly the keys of its files."""

    def __init__(
        self,
        layers: Iterable[AdapterLayer],
        text_parts: Sequence[str] = (),
        rates: Rates = PLAIN_RATES,
    ) -> None:
        """Take layers, in the order in which optimizers and logs see them.

        Args:
            layers: adapters of any kinds, each with a name of its own.
            text_parts: names of the family's text encoders in order, for their learning rates.
            rates: how learning rates differ between layers.
        """
        super().__init__()
        self.layers = list(layers)
        self.text_parts = list(text_parts)
        self.rates = rates
        self.noises: dict[str, Noise] = {}
        self._handles: list[RemovableHandle] = []
        for layer in self.layers:
            self.add_module(layer.name, as_module(layer))

    @classmethod
    def from_targets(
        cls,
        targets: Iterable[AdapterTarget],
        factory: LayerFactory,
        text_parts: Sequence[str] = (),
        rates: Rates = PLAIN_RATES,
    ) -> AdapterNetwork:
        """Let `factory` adapt the layers that it chooses among `targets`."""
        layers = [layer for layer in map(factory, targets) if layer is not None]
        return cls(layers, text_parts, rates)

    @property
    def trainable(self) -> nn.Module:
        """The network itself."""
        return self

    @property
    def is_attached(self) -> bool:
        """Whether the adapters act on the model."""
        return bool(self._handles)

    def attach(self) -> None:
        """Let the adapters act on the model; calling it twice changes nothing."""
        if not self._handles:
            self._handles = [attach(layer) for layer in self.layers]

    def detach(self) -> None:
        """Leave the model as it was without the adapters."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def set_strength(self, strength: Strength) -> None:
        """Set how strongly all adapters act: one number, or (B,), one per sample of the next batch."""
        for layer in self.layers:
            if (
                isinstance(strength, Tensor)
                or isinstance(layer.strength, Tensor)
                or layer.strength != strength
            ):
                layer.strength = strength  # setting a module's attribute takes longer than looking at it

    def merge(self, strength: float | None = None) -> None:
        """Write the adapters' change into the model's weights for good, and detach them."""
        self.detach()
        for layer in self.layers:
            merge(layer, strength)

    def parameter_groups(
        self, default_lr: float | None, denoiser_lr: float | None, text_encoder_lrs: Sequence[float] | None
    ) -> list[ParameterGroup]:
        """Return what to train at which rate; see `Network`. What is switched off stays as it is."""
        grouping = Grouping(self.rates, self.text_parts)
        return grouping.groups(self.layers, default_lr, denoiser_lr, text_encoder_lrs)

    def enable_checkpointing(self) -> None:
        """Do nothing: our adapters lie inside the blocks that are recomputed."""

    def on_epoch_start(self) -> None:
        """Switch the adapters' dropouts on."""
        self.train()

    def on_step_start(self) -> None:
        """Tell the noises, if layers have any."""
        for noise in self.noises.values():
            noise.step_begins()

    def on_step_end(self) -> dict[str, Tensor]:
        """Tell the noises, and return their mean norms."""
        if not self.noises:
            return {}
        changes, gradients = zip(*[noise.step_ends() for noise in self.noises.values()], strict=True)
        return {
            "ggpo/change_norm": torch.stack(changes).mean(),
            "ggpo/gradient_norm": torch.stack(gradients).mean(),
        }

    def tensors(self) -> Iterable[tuple[str, Tensor]]:
        """Return the layers' tensors, and the gradients' norms that the noises go by."""
        norms = {f"{name}.gradient_norms": noise.gradient_norms for name, noise in self.noises.items()}
        return [*self.state_dict(keep_vars=True).items(), *norms.items()]

    @property
    def can_limit_norms(self) -> bool:
        """Whether there is a layer of a kind that can."""
        return any(isinstance(layer, LimitsNorm) for layer in self.layers)

    def limit_norms(self, limit: float) -> dict[str, Tensor]:
        """Scale every layer's change down to a norm of `limit` at most; see `Network`."""
        limited = [limit_norm(layer, limit) for layer in self.layers if isinstance(layer, LimitsNorm)]
        norms, are_scaled = zip(*limited, strict=True)
        left = torch.stack(norms)
        return norm_figures(torch.stack(are_scaled).sum(), left.mean(), left.max())

    def save(self, path: Path, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> None:
        """Write the adapter file, hashes included; `dtype` None keeps what was trained."""
        write_adapter(path, self.state_dict(), metadata, dtype)

    def snapshot(self, dtype: torch.dtype | None, metadata: Mapping[str, str]) -> Callable[[Path], None]:
        """Return what writes the file that `save` would write now; see `Network`."""
        tensors = copied(self.state_dict())
        return lambda path: write_adapter(path, tensors, metadata, dtype)

    def load(self, path: Path) -> str:
        """Load the layers that the file and the network share; see `Network` and `filling.fill`."""
        return self.load_layers(path, read_adapter(path))

    def load_layers(self, path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> str:
        """Load what `read_adapter` returned of a file, as `load` does."""
        return fill(self.layers, path, tensors)

    def describe(self) -> str:
        """Return one line such as `adapts 304 layers of denoiser, 72 of clip_l`; it tells what is off."""
        counts = Counter(layer.target.part for layer in self.layers)
        parts = ", ".join(
            f"{count} of {part}" for part, count in sorted(counts.items(), key=lambda item: -item[1])
        )
        off = sum(layer.is_off for layer in self.layers)
        rest = f"; {off} of these are switched off by an alpha of 0, and stay so" if off else ""
        return f"adapts {parts.replace(' of', ' layers of', 1)}{rest}" if parts else "adapts nothing"


def norm_figures(num_scaled: Tensor, mean: Tensor, largest: Tensor) -> dict[str, Tensor]:
    """Return what `Network.limit_norms` reports, under the names that sd-scripts logs."""
    return {
        "max_norm/keys_scaled": num_scaled,
        "max_norm/average_key_norm": mean,
        "max_norm/max_key_norm": largest,
    }
