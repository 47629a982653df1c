"""A step of all weights of Stable Diffusion 1.5 at its real size, ours against a bare loop over diffusers'.

One image of 256 x 256 pixels, latents and text given; Adafactor without clipping. Each way has a process of
its own, one after the other, so that memory is its own:

    bare    diffusers' UNet, transformers' Adafactor; in float32, or all of it in bfloat16
    ours    our training step: in float32 all weights after the backward pass, in bfloat16 within it

    python benchmarks/sd15_full_step.py [--steps 3] [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.sd15_step import CPU, RandomFamily, batch, inputs, model_of, random_weights, seconds
from sfumato.cli.scripts import script_named
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.diffusion.schedules import ddpm_sigmas
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.parts import Parts
from sfumato.training.core import distributed, precision
from sfumato.training.core.plan import Plan
from sfumato.training.run.loop import Loop
from sfumato.training.run.weight_updates import update_for
from sfumato.training.trainables import method_for
from sfumato.training.update import optimizers

PLAIN = {"relative_step": False, "scale_parameter": False, "warmup_init": False}
RATE = 1e-5
FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    """Print the figures of each way as a line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs=2, metavar=("WAY", "FORMAT"))
    given = parser.parse_args()
    if given.only:
        measure(*given.only, given.steps, given.threads)
        return
    for name in FORMATS:
        for way in ("bare", "ours"):
            subprocess.run([sys.executable, *sys.argv, "--only", way, name], check=True)


def measure(way: str, name: str, num_steps: int, threads: int) -> None:
    """Take a first step, which is not counted, and then the others."""
    torch.set_num_threads(threads)
    step = (bare if way == "bare" else ours)(FORMATS[name])
    step()
    walls, cpus = zip(*(seconds(step) for _ in range(num_steps)), strict=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    times = {"wall_s": round(statistics.median(walls), 2), "cpu_s": round(statistics.median(cpus), 2)}
    print(json.dumps({"way": way, "format": name, **times, "peak_gb": round(peak, 2)}), flush=True)


def bare(dtype: torch.dtype) -> Callable[[], None]:
    """Return the shortest training step: noise, UNet, loss, Adafactor."""
    from transformers import Adafactor

    model = model_of(random_weights(dtype), is_quick=False).requires_grad_(True)
    optimizer = Adafactor(model.parameters(), lr=RATE, **PLAIN)
    sigmas, (latents, hidden) = ddpm_sigmas(), inputs()

    def step() -> None:
        timesteps = torch.randint(0, 1000, (1,))
        sigma = sigmas[timesteps].float().view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (latents + sigma * noise) / (1 + sigma**2).sqrt()
        output = model(noisy.to(dtype), timesteps, hidden.to(dtype), return_dict=False)[0]
        torch.nn.functional.mse_loss(output.float(), noise).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(dtype: torch.dtype) -> Callable[[], None]:
    """Return one turn of the training loop, as a run of the program takes it."""
    is_half = dtype is torch.bfloat16
    chosen = OptimizerConfig(
        optimizer_type="adafactor",
        optimizer_args=tuple(f"{name}={value}" for name, value in PLAIN.items()),
        learning_rate=RATE,
        max_grad_norm=0,
        fused_backward_pass=is_half,
    )
    formats = PrecisionConfig(mixed_precision="bf16" if is_half else "no", full_bf16=is_half)
    defaults = [section() for section in script_named("fine_tune").sections]
    run = Run("fine_tune", "sd", [*defaults, chosen, formats], "full")
    policy = precision.precision_for(formats, CPU)
    family = RandomFamily(random_weights(dtype), is_quick=is_half)
    processes = distributed.start(DistributedConfig())
    parts = Parts(family, CPU, {DENOISER: policy.trained})
    trainable = method_for(run, family).build(parts, policy, ())
    blocks = family.blocks(DENOISER, parts[DENOISER])
    shared = run, optimizers.plan(chosen), policy, processes
    update = update_for(*shared, trainable.groups(), blocks, num_steps=10**6, seed=1)
    plan, numbers = Plan(num_batches=1, group=1, num_steps=10**6), count(1)
    loop = Loop(trainable, update, plan, (batch() for _ in count()), seed=1)
    family.weights = {}

    def step() -> None:
        loop._take(plan.step(next(numbers)))

    return step


if __name__ == "__main__":
    main()
