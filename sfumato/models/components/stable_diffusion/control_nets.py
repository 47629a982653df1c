"""The ControlNets for one base model of Stable Diffusion: loaded from their files, or made of its UNet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.models.components.controlnet import controlnet, controlnet_file
from sfumato.models.components.controlnet.controlnet_names import published_names
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint
from sfumato.models.components.unet import unet_names
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.publishing import PartTensors


@dataclass(frozen=True)
class ControlNets:
    """What can be loaded beside a checkpoint's UNet."""

    checkpoint: Checkpoint

    def load(self, path: Path | None, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Load a ControlNet, frozen and in eval mode.

        Args:
            path: file or folder; None makes one that changes nothing yet.

        Raises:
            UserError: it is no ControlNet for this model.
        """
        heads = self.checkpoint.num_heads
        with self.checkpoint.opened(DENOISER) as unet:
            base = unet.renamed({new: old for old, new in unet_names.diffusers_names(unet.shapes).items()})
            if path is None:
                return controlnet.begin(base, dtype, device, num_heads=heads)
            with controlnet_file.opened(path, base) as view:
                return controlnet.load(view, dtype, device, num_heads=heads)


def file_tensors(checkpoint: Checkpoint, state: PartTensors) -> dict[str, LazyTensor]:
    """Return a ControlNet's tensors under the names that files for this kind of model have."""
    if not checkpoint.layout.has_published_controls:
        return dict(state)
    return {name: state[ours] for ours, name in published_names(state).items()}
