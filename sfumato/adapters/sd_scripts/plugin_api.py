"""Our adapters behind the plug-in interface of sd-scripts, for programs that import its network modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.adapters.layers.layer import AdapterLayer
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.models.interface.family import DENOISER


class PluginNetwork(nn.Module):
    """An adapter network with the method names that sd-scripts' trainers and tools call."""

    def __init__(
        self, network: AdapterNetwork, multiplier: float, has_second_text_encoder: bool = False
    ) -> None:
        super().__init__()
        self.train_t5xxl = has_second_text_encoder
        self.train_blocks = "all"
        self.multiplier = multiplier
        self._network = [network]  # in a list, so that its layers appear once in this module's state
        for layer in network.layers:
            assert isinstance(layer, nn.Module)
            self.add_module(layer.name, layer)
        network.set_strength(multiplier)

    @property
    def unet_loras(self) -> list[AdapterLayer]:
        """The denoiser's layers."""
        return [layer for layer in self._network[0].layers if layer.target.part == DENOISER]

    @property
    def text_encoder_loras(self) -> list[AdapterLayer]:
        """The text encoders' layers."""
        return [layer for layer in self._network[0].layers if layer.target.part != DENOISER]

    def apply_to(
        self, text_encoder: Any, unet: Any, apply_text_encoder: bool = True, apply_unet: bool = True
    ) -> None:
        """Let the adapters act on the models they were made for; parts that are not wanted are dropped."""
        network = self._network[0]
        kept = [
            layer
            for layer in network.layers
            if (apply_unet if layer.target.part == DENOISER else apply_text_encoder)
        ]
        for layer in network.layers:
            if layer not in kept:
                delattr(self, layer.name)
        self._network = [AdapterNetwork(kept, network.text_parts, network.rates)]
        self._network[0].attach()

    def load_weights(self, file: str) -> str:
        """Load an adapter file and say what was loaded."""
        return self._network[0].load(Path(file))

    def save_weights(self, file: str, dtype: torch.dtype | None, metadata: Mapping[str, str] | None) -> None:
        """Write an adapter file."""
        self._network[0].save(Path(file), dtype, metadata or {})

    def set_multiplier(self, multiplier: float) -> None:
        """Set how strongly the adapters act."""
        self.multiplier = multiplier
        self._network[0].set_strength(multiplier)

    def set_enabled(self, is_enabled: bool) -> None:
        """Switch the adapters on or off without forgetting their strength."""
        self._network[0].set_strength(self.multiplier if is_enabled else 0.0)

    def is_mergeable(self) -> bool:
        """Say that these adapters can be merged."""
        return True

    def merge_to(
        self,
        text_encoder: Any,
        unet: Any,
        weights_sd: Mapping[str, Tensor],
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Write the change that `weights_sd` describes into the models' weights."""
        self.load_state_dict(dict(weights_sd), strict=False)
        self._network[0].merge(self.multiplier)

    def prepare_optimizer_params(
        self,
        text_encoder_lr: float | Sequence[float] | None,
        unet_lr: float | None,
        default_lr: float | None = None,
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the optimizer's groups and their names in logs."""
        rates = [text_encoder_lr] if isinstance(text_encoder_lr, int | float) else text_encoder_lr
        groups = self._network[0].parameter_groups(default_lr, unet_lr, rates)
        return [group.as_dict() for group in groups], [group.name for group in groups]

    prepare_optimizer_params_with_multiple_te_lrs = prepare_optimizer_params

    def apply_max_norm_regularization(
        self, max_norm_value: float, device: torch.device | str
    ) -> tuple[int, float, float]:
        """Scale norms down to a limit; return how many layers were scaled, the mean norm and the largest."""
        scaled, mean, largest = self._network[0].limit_norms(max_norm_value).values()
        return int(scaled), float(mean), float(largest)

    def prepare_grad_etc(self, text_encoder: Any, unet: Any) -> None:
        """Make all parameters trainable."""
        self.requires_grad_(True)

    def enable_gradient_checkpointing(self) -> None:
        """Do nothing: the adapters lie inside the blocks that are recomputed."""

    def on_epoch_start(self, text_encoder: Any, unet: Any) -> None:
        """Switch to training mode."""
        self.train()

    def get_trainable_params(self) -> list[nn.Parameter]:
        """Return all parameters."""
        return list(self.parameters())
