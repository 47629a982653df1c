"""Train the toy base's transformer and text encoders to generate eight photographs by their captions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sfumato import log, seeds
from sfumato.demo import base as base_files
from sfumato.demo import make_text, progress
from sfumato.demo.muon import Muon
from sfumato.demo.photographs import KNOWN
from sfumato.diffusion.objectives import flow_noisy, flow_target
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.families.flux import text
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.families.flux.packing import image_ids, pack, unpack
from sfumato.models.interface.tokenizers import Tokenizers

SHAPE = FluxShape(
    hidden_size=192,
    num_heads=6,
    depth=2,
    depth_single=3,
    in_channels=64,
    text_width=make_text.WIDTH,
    pooled_width=make_text.WIDTH,
    mlp_hidden=640,
    axes_dim=(4, 14, 14),
)

_NUM_STEPS = 1500
_PEAK_LR = 3e-3
_SAVE_EVERY = 100


@dataclass
class Base:
    """What is trained together."""

    denoiser: Flux
    encoders: nn.ModuleDict

    def parts(self) -> nn.ModuleList:
        """Return everything as one module."""
        return nn.ModuleList([self.denoiser, self.encoders])


def train(latents: Tensor, tokenizers: Tokenizers[Tokenizer], state_file: Path) -> Base:
    """Train on scaled latents (8, 16, 16, 16), one for each known photograph; go on from `state_file`."""
    torch.manual_seed(2)
    base = Base(Flux(SHAPE), make_text.build_encoders(tokenizers))
    make_text.shrink_embeddings(base.encoders)
    _start_at_zero(base.denoiser)
    modules, optimizers = base.parts(), _optimizers(base)
    start = progress.resume(state_file, modules, optimizers)
    bar = log.progress(range(start, _NUM_STEPS), total=_NUM_STEPS, initial=start, title="base")
    for step in bar:
        rng = torch.Generator().manual_seed(seeds.derive("base", step))
        loss = _loss(base, latents, _tokens(tokenizers, rng), rng)
        modules.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _schedule(step)
            optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.4f}")
        if step % _SAVE_EVERY == _SAVE_EVERY - 1:
            progress.save(state_file, step + 1, modules, optimizers)
    modules.eval().requires_grad_(False)
    return base


def _start_at_zero(denoiser: Flux) -> None:
    """Start with blocks that change nothing and a velocity of zero (Peebles and Xie 2023, section 3.2)."""
    for name, parameter in denoiser.named_parameters():
        if "_mod." in name or "modulation." in name or name.startswith("final_layer"):
            nn.init.zeros_(parameter)


def _optimizers(base: Base) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices inside the blocks, Adam for everything else."""
    named = list(base.denoiser.named_parameters())
    inner = [weight for name, weight in named if weight.ndim == 2 and "_blocks." in name]
    outer = [weight for name, weight in named if weight.ndim != 2 or "_blocks." not in name]
    adam = torch.optim.Adam(
        [
            {"params": outer, "lr": _PEAK_LR, "peak": _PEAK_LR},
            {"params": [*base.encoders.parameters()], "lr": _PEAK_LR / 3, "peak": _PEAK_LR / 3},
        ],
        betas=(0.9, 0.98),
    )
    muon = Muon(inner, lr=_PEAK_LR)
    muon.param_groups[0]["peak"] = _PEAK_LR
    return [muon, adam]


def _schedule(step: int) -> float:
    """Return the learning rate's factor: a short warmup, then half a cosine down to 1 %."""
    return min(1, (step + 1) / 30) * (0.505 + 0.495 * math.cos(math.pi * step / _NUM_STEPS))


def _tokens(tokenizers: Tokenizers[Tokenizer], rng: torch.Generator) -> dict[str, Tensor]:
    """Return the tokens of one caption for each photograph, its prompt half of the time."""
    captions = []
    for photograph in KNOWN:
        others = photograph.captions
        number = int(torch.randint(2 * len(others), (), generator=rng))
        captions.append(others[number] if number < len(others) else photograph.prompt)
    return text.tokenize(tokenizers, captions, base_files.TEXT_LENGTH)


def _loss(base: Base, latents: Tensor, tokens: dict[str, Tensor], rng: torch.Generator) -> Tensor:
    """Return the flow-matching loss of all photographs at evenly spread noise levels and any guidance."""
    batch, _, height, width = latents.shape
    # One level from each eighth, in random order: less variance than independent draws.
    strata = torch.randperm(batch, generator=rng)
    sigmas = (strata + torch.rand(batch, generator=rng)) / batch
    noise = torch.randn(latents.shape, generator=rng)
    words = make_text.encode(base.encoders, tokens)
    predicted = base.denoiser(
        img=pack(flow_noisy(latents, noise, sigmas)),
        img_ids=image_ids(batch, height, width, latents.device),
        txt=words["t5_out"],
        txt_ids=torch.zeros(*words["t5_out"].shape[:2], 3),
        timesteps=sigmas,
        y=words["l_pooled"],
        guidance=1 + 4 * torch.rand(batch, generator=rng),
        txt_attention_mask=words["t5_attn_mask"],
    )
    return (unpack(predicted, height, width) - flow_target(latents, noise)).pow(2).mean()
