"""Images of Stable Diffusion 1.5 at its real size, ours against diffusers' pipeline: time and peak RAM.

UNet and autoencoder have all their weights, drawn at random, and the text is given: 20 steps of DDIM with
guidance, 256 x 256 pixels. Both take the same format: bfloat16 weights compute under autocast in ours, and as
they are in diffusers. One kind runs in one process, so that its peak of memory is its own.

    python benchmarks/generate_sd15.py --kind ours [--dtype bf16] [--batch_size 4] [--threads 1]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from benchmarks.sd15_step import CPU, RandomFamily, random_weights
from sfumato.models.components import autoencoder
from sfumato.models.components.unet import unet
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request

SIDE_PX, STEPS, SCALE = 256, 20, 7.5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPE = autoencoder.AutoencoderShape(4, (128, 256, 512, 512), resnets=2, has_quant_convs=True)
POSITIVE, NEGATIVE = "a cat", ""


def main() -> None:
    """Print the figures as JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    make = KINDS[given.kind](DTYPES[given.dtype], given.batch_size)
    before = time.process_time()
    started = time.perf_counter()
    make()
    figures = {
        "kind": given.kind,
        "dtype": given.dtype,
        "batch_size": given.batch_size,
        "threads": given.threads,
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - before, 1),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }
    print(json.dumps(figures))


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=list(KINDS), required=True)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class RandomModel(RandomFamily):
    """Stable Diffusion of random weights, its autoencoder included."""

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Return the UNet, or the autoencoder."""
        return random_autoencoder(dtype) if part == VAE else super().load(part, dtype, device)


def random_autoencoder(dtype: torch.dtype) -> nn.Module:
    """Return an autoencoder of random weights."""
    torch.manual_seed(1)
    model = autoencoder.build(SHAPE).to_empty(device=CPU).to(dtype).requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        is_norm = weight.dim() == 1 and name.endswith("weight")
        weight.fill_(1.0) if is_norm else weight.normal_(0, 0.02)
    return model


def texts(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return what a text encoder might say, (1, 77, 768), by prompt."""
    rng = torch.Generator().manual_seed(2)
    return {prompt: torch.randn(1, 77, 768, generator=rng).to(dtype) for prompt in (POSITIVE, NEGATIVE)}


def ours(dtype: torch.dtype, batch_size: int) -> Callable[[], object]:
    """Return what makes a batch of images with our pipeline; weights are loaded already."""
    family = RandomModel(random_weights(dtype), is_quick=dtype != torch.float32)
    parts = Parts(family, CPU, {DENOISER: dtype, VAE: dtype})
    pipeline = Pipeline(family, parts, dtype=dtype)
    parts[DENOISER], parts[VAE]
    encoded = {prompt: {"hidden_state": value} for prompt, value in texts(dtype).items()}
    requests = [
        Request(POSITIVE, NEGATIVE, SIDE_PX, SIDE_PX, STEPS, seed, cfg_scale=SCALE, sampler="ddim")
        for seed in range(batch_size)
    ]
    return lambda: pipeline.batch(requests, encoded)


def theirs(dtype: torch.dtype, batch_size: int) -> Callable[[], object]:
    """Return what makes a batch of images with diffusers' pipeline."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from benchmarks.sd15_step import SHAPE as UNET_SHAPE

    model = unet.build(UNET_SHAPE)
    model.load_state_dict(random_weights(dtype), assign=True)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipeline = StableDiffusionPipeline(
        random_autoencoder(dtype),  # type: ignore[arg-type]
        *(None, None),  # type: ignore[arg-type]
        model,  # type: ignore[arg-type]
        scheduler,
        *(None, None),  # type: ignore[arg-type]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    encoded = texts(dtype)
    return lambda: pipeline(
        prompt_embeds=encoded[POSITIVE].expand(batch_size, -1, -1),
        negative_prompt_embeds=encoded[NEGATIVE].expand(batch_size, -1, -1),
        width=SIDE_PX,
        height=SIDE_PX,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        generator=[torch.Generator().manual_seed(seed) for seed in range(batch_size)],
    )


KINDS = {"ours": ours, "diffusers": theirs}

if __name__ == "__main__":
    main()
