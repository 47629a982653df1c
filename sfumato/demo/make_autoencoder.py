"""Train the toy base's autoencoder: FLUX's structure with few channels and a downscale of 4.

It learns from random crops of scikit-image's photographs, the subject's excepted. Latents end up with mean 0
and variance 1 after FLUX's own shift and scale, so that nothing downstream needs to know that it is a toy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from PIL import Image
from torch import Tensor, nn

from sfumato import log, seeds
from sfumato.demo import progress
from sfumato.demo.muon import Muon
from sfumato.demo.photographs import KNOWN, SIZE_PX

CHANNELS = 16
LATENT_SCALE, LATENT_SHIFT = 0.3611, 0.1159
LOG_VARIANCE = -6.0
"""Of every latent, constant: sampled and mean latents differ by less than 2 % of the latents' spread."""

_NUM_STEPS = 2400
_ENCODER_STEPS = 800
"""From here on latents stay as they are and only the decoder learns."""

_BATCH_SIZE = 4
_PEAK_LR = 2e-3
_MORE_ORIGINALS = ("moon.png", "coins.png")


def train(originals: Path, state_file: Path) -> AutoencoderKL:
    """Train the autoencoder on crops of the photographs in `originals`, going on from `state_file`."""
    torch.manual_seed(1)
    model = build()
    optimizers = _optimizers(model)
    start = progress.resume(state_file, model, optimizers)
    images, known = _read(originals), known_pixels()
    bar = log.progress(range(start, _NUM_STEPS), total=_NUM_STEPS, initial=start, title="autoencoder")
    for step in bar:
        if step == _ENCODER_STEPS:
            _normalise_latents(model, known)
        model.encoder.requires_grad_(step < _ENCODER_STEPS)
        rng = torch.Generator().manual_seed(seeds.derive("autoencoder", step))
        num_known = 2 if step < _ENCODER_STEPS else 1
        loss = _loss(model, _batch(images, known, num_known, rng), rng)
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = _PEAK_LR * _schedule(step)
            optimizer.step()
        bar.set_postfix(dB=f"{-10 * math.log10(loss.item() / 4):.1f}")
        if step % 200 == 199:
            progress.save(state_file, step + 1, model, optimizers)
    return model.eval().requires_grad_(False)


def build() -> AutoencoderKL:
    """Return the untrained autoencoder."""
    levels = 3
    config: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": (64,) * levels,
        "layers_per_block": 1,
        "latent_channels": CHANNELS,
        "norm_num_groups": 32,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    model = AutoencoderKL(**config)
    _start_straight(model)
    return model


def known_pixels() -> Tensor:
    """Return the base's own photographs, (8, 3, 64, 64) in [-1, 1]."""
    return torch.stack([to_pixels(Image.open(photograph.path)) for photograph in KNOWN])


def to_pixels(image: Image.Image) -> Tensor:
    """Return an image as (3, H, W) in [-1, 1]."""
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


@torch.no_grad()
def _start_straight(model: AutoencoderKL) -> None:
    """Start with residual blocks that add nothing and resamplers that keep a signal's size."""
    for any_module in model.modules():
        module: Any = any_module
        if isinstance(any_module, ResnetBlock2D):
            nn.init.zeros_(module.conv2.weight)
        elif isinstance(any_module, Attention):
            nn.init.zeros_(module.to_out[0].weight)
        elif isinstance(any_module, Downsample2D | Upsample2D):
            nn.init.kaiming_normal_(module.conv.weight, nonlinearity="linear")
    for entry in (model.encoder.conv_in, model.decoder.conv_in):
        nn.init.kaiming_normal_(entry.weight, nonlinearity="linear")
    head: Any = model.encoder.conv_out
    head.weight[CHANNELS:] = 0
    head.bias[CHANNELS:] = LOG_VARIANCE


def _optimizers(model: AutoencoderKL) -> list[torch.optim.Optimizer]:
    """Return Muon for the hidden kernels, Adam for what touches pixels or latents and for all vectors."""
    outer = ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_out.weight")
    named = list(model.named_parameters())
    hidden = [weight for name, weight in named if weight.ndim > 1 and name not in outer]
    rest = [weight for name, weight in named if weight.ndim == 1 or name in outer]
    return [Muon(hidden, lr=_PEAK_LR), torch.optim.Adam(rest, lr=_PEAK_LR, betas=(0.9, 0.98))]


def _schedule(step: int) -> float:
    """Return the learning rate's factor: a short warmup, then half a cosine down to 2 %."""
    return min(1, (step + 1) / 20) * (0.51 + 0.49 * math.cos(math.pi * step / _NUM_STEPS))


def _read(originals: Path) -> list[Tensor]:
    """Read each photograph at up to three small sizes, so that crops hold much detail."""
    names = [*(photograph.original for photograph in KNOWN), *_MORE_ORIGINALS]
    images = []
    for name in names:
        with Image.open(originals / name) as opened:
            image = opened.convert("RGB")
        for factor in (2, 4, 6):
            size = (image.width // factor, image.height // factor)
            if min(size) > SIZE_PX:
                images.append(to_pixels(image.resize(size, Image.Resampling.LANCZOS)))
    return images


def _batch(images: Sequence[Tensor], known: Tensor, num_known: int, rng: torch.Generator) -> Tensor:
    """Return (B, 3, 64, 64): known photographs, then crops with their colours exchanged at random."""
    chosen = [known[_draw(len(known), rng)] for _ in range(num_known)]
    while len(chosen) < _BATCH_SIZE:
        image = images[_draw(len(images), rng)]
        top, left = (_draw(side - SIZE_PX + 1, rng) for side in image.shape[1:])
        crop = image[torch.randperm(3, generator=rng), top : top + SIZE_PX, left : left + SIZE_PX]
        gain = 0.7 + 0.3 * torch.rand(3, 1, 1, generator=rng)
        chosen.append((crop + 1) * gain - 1)
    return torch.stack(chosen)


def _draw(stop: int, rng: torch.Generator) -> int:
    return int(torch.randint(stop, (), generator=rng))


def _loss(model: AutoencoderKL, pixels: Tensor, rng: torch.Generator) -> Tensor:
    """Return the squared error after a round trip through slightly noisy latents.

    The noise (5 % of the latents' spread) makes the decoder forgive what a denoiser leaves behind.
    """
    latents = model.encoder(pixels)[:, :CHANNELS]
    noise = 0.05 * latents.detach().std() * torch.randn(latents.shape, generator=rng)
    return (model.decoder(latents + noise) - pixels).pow(2).mean()


@torch.no_grad()
def _normalise_latents(model: AutoencoderKL, pixels: Tensor) -> None:
    """Fold a change of variables into the two layers that touch latents: mean 0, variance 1 once scaled."""
    latents = model.encoder(pixels)[:, :CHANNELS]
    mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / (LATENT_SCALE * spread)
    head: Any = model.encoder.conv_out
    tail: Any = model.decoder.conv_in
    head.weight[:CHANNELS] *= gain[:, None, None, None]
    head.bias[:CHANNELS] = (head.bias[:CHANNELS] - mean) * gain + LATENT_SHIFT
    tail.bias += (tail.weight * (mean - LATENT_SHIFT / gain)[None, :, None, None]).sum((1, 2, 3))
    tail.weight /= gain[None, :, None, None]
