"""The small U-Nets and text encoders of recorded adapter cases, with or without numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.models.components import text_encoders
from sfumato.models.components.unet import unet, unet_names
from sfumato.models.interface.family import DENOISER
from tests.golden.derived import arrays, inputs, settings, weight


@dataclass(frozen=True)
class Recorded:
    """How one family's cases were run. The fixture tells all but timesteps and the real model's widths.

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

    @property
    def key_prefix(self) -> str:
        """What the names of all weights begin with."""
        return settings(self.fixture).get("key_prefix", "")

    def models(self) -> dict[str, nn.Module]:
        """Return all parts on the meta device."""
        texts = {part: _clip(*sizes) for part, sizes in self.texts.items()}
        return {**texts, DENOISER: unet.build(self.shape, self.heads)}

    def denoiser(self) -> nn.Module:
        """Return the U-Net with its derived numbers."""
        std = settings(self.fixture)["model_weight_std"]
        return _filled(self.shape, self.heads, self.key_prefix, std, is_published=self.has_published_names)

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


def generating_unet(kind: str) -> nn.Module:
    """Return the U-Net of the recorded steps of gen_img, `sd` or `sdxl`, with its derived numbers."""
    model = settings("k_gen_steps")["unets"][kind]
    if kind == "sd":
        shape = _small(
            model["block_out_channels"], depths=(1, 1, 1, 0), context=model["cross_attention_dim"], vector=0
        )
        return _filled(shape, (model["heads"],) * 4, "", model["weight_std"], is_published=False)
    width = model["model_channels"]
    shape = _small(
        (width, 2 * width, 4 * width), depths=(0, 2, 10), context=model["context_dim"], vector=model["adm"]
    )
    heads = tuple(max(1, factor * width // 64) for factor in (1, 2, 4))
    return _filled(shape, heads, "", model["weight_std"], is_published=True)


def _filled(
    shape: unet.UnetShape, heads: tuple[int, ...], key_prefix: str, std: float, *, is_published: bool
) -> nn.Module:
    model = unet.build(shape, heads).to_empty(device="cpu").requires_grad_(False).eval()
    state = model.state_dict()
    names = unet_names.published_names(state) if is_published else {name: name for name in state}
    model.load_state_dict({k: weight(key_prefix + names[k], v.shape, std) for k, v in state.items()})
    return model


def predict_in_place(predict: Callable[..., Tensor], denoiser: nn.Module, *given: Any) -> Tensor:
    """Return the output of sd-scripts' U-Net for Stable Diffusion 1 and 2 with what a ControlNet adds.

    It adds residuals in place, so that its middle sees the last of them, too. No other program does, and
    neither do we.

    Args:
        predict: `unet.predict`, which takes what is given.
    """
    *_, last, _ = given[-1].values()
    hook = denoiser.mid_block.register_forward_pre_hook(lambda _, given: (given[0] + last, *given[1:]))
    output = predict(denoiser, *given)
    hook.remove()
    return output


def _clip(width: int, inner: int, activation: str) -> nn.Module:
    sizes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
        "encoder.layers.0.mlp.fc1.weight": (inner, width),
        "encoder.layers.1.mlp.fc1.weight": (inner, width),
    }
    return text_encoders.build_clip(sizes, activation, 4)


def _small(widths: Sequence[int], *, depths: tuple[int, ...], context: int, vector: int) -> unet.UnetShape:
    return unet.UnetShape(
        in_channels=4,
        out_channels=4,
        resnets=2,
        widths=tuple(widths),
        depths=depths,
        middle_depth=max(depths),
        context=context,
        vector=vector,
        is_linear=vector > 0,
    )


def _text(model: Mapping[str, Any]) -> tuple[int, int, str]:
    return model["hidden"], 4 * model["hidden"], model["act"]


def _sd() -> Recorded:
    model, numbers = settings("e_net_sd")["model"], arrays("e_net_sd")
    return Recorded(
        fixture="e_net_sd",
        family="sd",
        shape=_small(
            model["block_out_channels"], depths=(1, 1, 1, 0), context=model["cross_attention_dim"], vector=0
        ),
        heads=(model["heads"],) * 4,
        texts={"text_encoder": _text(model["text_encoder"])},
        noisy=tuple(numbers["base/out"].shape),
        timesteps=(33.0, 777.0),
        prefix="enet.sd",
    )


def _sdxl() -> Recorded:
    model, numbers = settings("e_net_sdxl")["model"], arrays("e_net_sdxl")
    width = model["model_channels"]
    output = next(name for name in numbers if name.endswith("/out_m1.0"))
    return Recorded(
        fixture="e_net_sdxl",
        family="sdxl",
        shape=_small((width, 2 * width, 4 * width), depths=(0, 2, 10), context=2048, vector=2816),
        heads=tuple(max(1, factor * width // 64) for factor in (1, 2, 4)),
        texts={"text_encoder1": _text(model["te1"]), "text_encoder2": _text(model["te2"])},
        noisy=tuple(numbers[output].shape),
        timesteps=(321.0,),
        prefix="enet.xl",
        vector="enet.xl.y",
        has_published_names=True,
    )


SD, SDXL = _sd(), _sdxl()
