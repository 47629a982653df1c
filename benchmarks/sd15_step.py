"""A training step of Stable Diffusion 1.5 at its real size, ours against a bare loop over diffusers' UNet.

The UNet has all its 859 million weights, drawn at random; one image of 256 x 256 pixels (latents and text
are given), LoRA of rank 4, AdamW. The bare loop holds the same weights in the same format, adapts the same
layers by the shortest code that does so, and runs under the same autocast. The steps are taken in turn:

    bare    diffusers' UNet, LoRA by hooks, AdamW as torch makes it
    plain   our training step on the same UNet
    ours    our training step on the UNet as we load it: with bfloat16, quickened

Ratios are medians over rounds, so that what else the machine does hits all alike; with one thread, CPU
seconds hardly count it at all. Memory is measured in a process for each, `--only`.

    python benchmarks/sd15_step.py [--mixed_precision bf16] [--threads 1] [--rounds 5] [--only ours]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from sfumato.cli.scripts import script_named
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.data.batches.collate import Batch
from sfumato.diffusion.schedules import ddpm_sigmas
from sfumato.models.components.unet import unet
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.interface.parts import Parts
from sfumato.nn.precision import name_of
from sfumato.training.core import distributed, precision
from sfumato.training.core.plan import Plan
from sfumato.training.core.precision import Precision
from sfumato.training.run.loop import Loop
from sfumato.training.trainables import method_for
from sfumato.training.update import optimizers
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Stepping

SHAPE = unet.UnetShape(
    in_channels=4,
    out_channels=4,
    resnets=2,
    widths=(320, 640, 1280, 1280),
    depths=(1, 1, 1, 0),
    middle_depth=1,
    context=768,
    vector=0,
    is_linear=False,
)
KINDS = ("bare", "plain", "ours")
RANK = 4
CPU = torch.device("cpu")
WARM_UP = 1
"""Rounds that are not counted."""


def main() -> None:
    """Print the figures as JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    device = distributed.start(DistributedConfig()).device
    policy = precision.precision_for(PrecisionConfig(mixed_precision=given.mixed_precision), device)
    weights = random_weights(policy.compute)
    kinds = (given.only,) if given.only else KINDS
    steps = {kind: (bare if kind == "bare" else ours)(weights, policy, kind == "ours") for kind in kinds}
    del weights
    rounds = [{kind: seconds(step) for kind, step in steps.items()} for _ in range(WARM_UP + given.rounds)]
    figures = {
        "weights": name_of(policy.compute),
        "threads": given.threads,
        "load": round(os.getloadavg()[0], 1),
        "steps": {kind: summary([taken[kind] for taken in rounds[WARM_UP:]]) for kind in kinds},
        "ratios": {} if given.only else ratios(rounds[WARM_UP:]),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }
    print(json.dumps(figures))


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="no")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=KINDS)
    return parser.parse_args()


def random_weights(dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights for which activations neither vanish nor grow: norms pass on what they get."""
    torch.manual_seed(0)
    drawn: dict[str, Tensor] = {}
    for name, empty in unet.build(SHAPE).state_dict().items():
        fresh = torch.empty(empty.shape, dtype=dtype)
        is_norm = empty.dim() == 1 and name.endswith("weight")
        drawn[name] = fresh.fill_(1.0) if is_norm else fresh.normal_(0, 0.02)
    return drawn


def model_of(weights: Mapping[str, Tensor], is_quick: bool) -> nn.Module:
    """Return a frozen UNet that shares these weights, as far as it has no layout of its own."""
    model = unet.build(SHAPE)
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False).eval()
    if is_quick:
        unet.hasten(model, model.dtype, CPU)
    return model


class RandomFamily(SdFamily):
    """Stable Diffusion whose UNet comes from memory instead of from a file."""

    def __init__(self, weights: Mapping[str, Tensor], is_quick: bool) -> None:
        super().__init__(path=None)
        self.weights = weights
        self.is_quick = is_quick

    def load(self, part: str, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Return the UNet; nothing else is ever asked for."""
        return model_of(self.weights, self.is_quick)


def ours(weights: Mapping[str, Tensor], policy: Precision, is_quick: bool) -> Callable[[], None]:
    """Return one turn of the training loop, as a run of the program takes it."""
    network = NetworkConfig(network_module="networks.lora", network_dim=RANK, network_train_unet_only=True)
    defaults = [section() for section in script_named("train_network").sections]
    run = Run("train_network", "sd", [*defaults, network], "adapter")
    family = RandomFamily(weights, is_quick)
    processes = distributed.start(DistributedConfig())
    trainable = method_for(run, family).build(Parts(family, processes.device), policy, ())
    config = run[OptimizerConfig]
    optimizer = optimizers.plan(config).build([g.as_dict() for g in trainable.groups()], config.learning_rate)
    update = Update(Stepping(optimizer), processes, config.max_grad_norm)
    plan = Plan(num_batches=1, group=1, num_steps=10**6)
    loop = Loop(trainable, update, plan, (batch() for _ in count()), seed=1)
    numbers = count(1)

    def step() -> None:
        loop._take(plan.step(next(numbers)))

    return step


def batch() -> Batch:
    """Return one image's latents and text, as caches hand them out."""
    latents, hidden = inputs()
    size = torch.tensor([[256, 256]])
    one = torch.ones(1)
    return Batch(
        ["a cat"], ["cat.png"], one, one, size, 0 * size, size, latents, text={"hidden_state": hidden}
    )


def inputs() -> tuple[Tensor, Tensor]:
    """Return latents (1, 4, 32, 32) and text (1, 77, 768), always the same."""
    rng = torch.Generator().manual_seed(2)
    return torch.randn(1, 4, 32, 32, generator=rng), torch.randn(1, 77, 768, generator=rng)


def bare(weights: Mapping[str, Tensor], policy: Precision, _: bool) -> Callable[[], None]:
    """Return the shortest training step that does the same: noise, UNet, loss, clipping, AdamW."""
    model = model_of(weights, is_quick=False)
    parameters = [parameter for layer in adapted(model) for parameter in hook_lora(layer)]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    sigmas = ddpm_sigmas()
    latents, hidden = inputs()

    def step() -> None:
        timesteps = torch.randint(0, 1000, (1,))
        sigma = sigmas[timesteps].float().view(-1, 1, 1, 1)
        noise = torch.randn_like(latents)
        noisy = (latents + sigma * noise) / (1 + sigma**2).sqrt()
        with policy.autocast():
            arguments = noisy.to(policy.compute), timesteps, hidden.to(policy.compute)
            output = model(*arguments, return_dict=False)[0]
        torch.nn.functional.mse_loss(output.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def adapted(model: nn.Module) -> list[nn.Module]:
    """Return the layers that sd-scripts adapts by default: all Linear and 1x1 layers of the transformers."""
    return [
        layer
        for name, layer in model.named_modules()
        if ".attentions." in name and isinstance(layer, nn.Linear | nn.Conv2d)
    ]


def hook_lora(layer: nn.Module) -> list[nn.Parameter]:
    """Add a LoRA to a layer's output; return its two weights."""
    if isinstance(layer, nn.Linear):
        down: nn.Module = nn.Linear(layer.in_features, RANK, bias=False)
        up: nn.Module = nn.Linear(RANK, layer.out_features, bias=False)
    else:
        assert isinstance(layer, nn.Conv2d)
        down = nn.Conv2d(layer.in_channels, RANK, 1, bias=False)
        up = nn.Conv2d(RANK, layer.out_channels, 1, bias=False)
    nn.init.zeros_(up.get_parameter("weight"))
    layer.register_forward_hook(lambda _, inputs, output: output + up(down(inputs[0]) / RANK))
    return [*down.parameters(), *up.parameters()]


def seconds(step: Callable[[], None]) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of one step."""
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(taken: list[tuple[float, float]]) -> dict[str, float]:
    """Return medians."""
    walls, cpus = zip(*taken, strict=True)
    return {"wall_s": round(statistics.median(walls), 3), "cpu_s": round(statistics.median(cpus), 3)}


def ratios(rounds: list[dict[str, tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Return how long each kind takes relative to the bare loop's step of the same round."""
    return {
        kind: {
            unit: round(statistics.median(taken[kind][i] / taken["bare"][i] for taken in rounds), 3)
            for i, unit in enumerate(("wall", "cpu"))
        }
        for kind in KINDS[1:]
    }


if __name__ == "__main__":
    main()
