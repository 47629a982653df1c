"""The small U-Nets and text encoders of recorded adapter cases, with or without numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.models import text_encoders, unet, unet_names
from sfumato.models.family import DENOISER
from tests.golden.derived import inputs, weight


@dataclass(frozen=True)
class Recorded:
    """How one family's cases were run.

    Attributes:
        texts: width, feed-forward width and activation of each text encoder.
        vector: the name of the input that takes the place of pooled text and framing, or "".
    """

    fixture: str
    family: str
    shape: unet.UnetShape
    heads: tuple[int, ...]
    texts: Mapping[str, tuple[int, int, str]]
    noisy: tuple[int, ...]
    timesteps: tuple[float, ...]
    prefix: str
    vector: str = ""
    has_published_names: bool = False

    def models(self) -> dict[str, nn.Module]:
        """Return all parts on the meta device."""
        texts = {part: _clip(*sizes) for part, sizes in self.texts.items()}
        return {**texts, DENOISER: unet.build(self.shape, self.heads)}

    def denoiser(self) -> nn.Module:
        """Return the U-Net with its derived numbers."""
        model = unet.build(self.shape, self.heads).to_empty(device="cpu").requires_grad_(False).eval()
        state = model.state_dict()
        names = (
            unet_names.published_names(state) if self.has_published_names else {name: name for name in state}
        )
        model.load_state_dict({k: weight(names[k], tuple(v.shape), 0.02) for k, v in state.items()})
        return model

    def predict(self, model: Any) -> Tensor:
        """Run the U-Net on the recorded inputs."""
        batch = self.noisy[0]
        told = None
        if self.vector:
            pooled = inputs(self.vector, (batch, self.shape.vector))
            model.get_aug_embed = lambda **_: model.add_embedding(pooled)
            told = {}
        noisy = inputs(f"{self.prefix}.x", self.noisy)
        context = inputs(f"{self.prefix}.ctx", (batch, 77, self.shape.context))
        return model(noisy, torch.tensor(self.timesteps), context, added_cond_kwargs=told).sample


def _clip(width: int, inner: int, activation: str) -> nn.Module:
    sizes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
        "encoder.layers.0.mlp.fc1.weight": (inner, width),
        "encoder.layers.1.mlp.fc1.weight": (inner, width),
    }
    return text_encoders.build_clip(sizes, activation, 4)


_SHAPE = unet.UnetShape(
    in_channels=4,
    out_channels=4,
    resnets=2,
    widths=(32, 64, 128, 128),
    depths=(1, 1, 1, 0),
    middle_depth=1,
    context=48,
    vector=0,
    is_linear=False,
)
SD = Recorded(
    fixture="e_net_sd",
    family="sd",
    shape=_SHAPE,
    heads=(8, 8, 8, 8),
    texts={"text_encoder": (48, 192, "quick_gelu")},
    noisy=(2, 4, 8, 8),
    timesteps=(33.0, 777.0),
    prefix="enet.sd",
)
SDXL = Recorded(
    fixture="e_net_sdxl",
    family="sdxl",
    shape=replace(
        _SHAPE,
        widths=(32, 64, 128),
        depths=(0, 2, 10),
        middle_depth=10,
        context=2048,
        vector=2816,
        is_linear=True,
    ),
    heads=(1, 1, 2),
    texts={"text_encoder1": (48, 192, "quick_gelu"), "text_encoder2": (56, 224, "gelu")},
    noisy=(1, 4, 8, 8),
    timesteps=(321.0,),
    prefix="enet.xl",
    vector="enet.xl.y",
    has_published_names=True,
)
