"""What stochastic rounding is worth: a tiny FLUX trained in bfloat16 with it, without it, and in float32.

Prints JSON: the mean loss of the last steps of each run, relative to float32. With `--svg FILE` it draws the
curves: `python benchmarks/stochastic_rounding.py --svg docs/stochastic_rounding.svg`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sfumato.cli.main import script
from tests import tiny

STEPS, MEAN_OF, MEANS = 300, 50, 20
COMMON = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --seed 3 --learning_rate 1e-4
--cache_latents_to_disk --cache_text_encoder_outputs_to_disk --max_grad_norm 0 --output_name model
--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False
--lr_scheduler constant_with_warmup --timestep_sampling shift --discrete_flow_shift 3.1582
--model_prediction_type raw --guidance_scale 1.0 --fused_backward_pass
"""
BF16 = "--mixed_precision bf16 --full_bf16"
COLOURS = {"float32": "#444444", "stochastic": "#2a7f5f", "nearest": "#c0504d"}


def main() -> None:
    """Train three times, compare, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--svg", type=Path)
    given = parser.parse_args()
    curves = measure(given.steps)
    print(json.dumps(summary(curves), indent=1))
    if given.svg:
        given.svg.write_text(svg(curves), encoding="utf-8")


def measure(num_steps: int) -> dict[str, list[float]]:
    """Return each run's loss at each step; noise and timesteps are the same in all of them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = tiny.flux(root / "model")
        tiny.pictures(root / "data" / "1_sks cat", 2)

        def losses(name: str, options: str) -> list[float]:
            places = ["--train_data_dir", str(root / "data"), "--output_dir", str(root / name)]
            length = ["--max_train_steps", str(num_steps)]
            arguments = [*model.arguments, *places, *length, *shlex.split(COMMON), *shlex.split(options)]
            if script("flux_train", arguments):
                sys.exit(f"the run {name} failed")
            lines = (root / name / "model.metrics.jsonl").read_text("utf-8").splitlines()
            return [figures["loss"] for figures in map(json.loads, lines) if "loss" in figures]

        curves = {"float32": losses("float32", ""), "stochastic": losses("stochastic", BF16)}
        with _rounding_to_nearest():
            return {**curves, "nearest": losses("nearest", BF16)}


def summary(curves: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean loss at the beginning and at the end of each run, and the ends relative to float32."""
    first, *_ = curves.values()
    ends = {name: statistics.fmean(losses[-MEAN_OF:]) for name, losses in curves.items()}
    return {
        "steps": len(first),
        "start": round(statistics.fmean(first[:MEAN_OF]), 4),
        **{name: round(end, 4) for name, end in ends.items()},
        **{f"{name} / float32": round(end / ends["float32"], 4) for name, end in ends.items()},
    }


def svg(curves: Mapping[str, Sequence[float]], width: int = 640, height: int = 320) -> str:
    """Return a drawing of the running means of the curves, as an SVG file.

    The axis of the losses goes from a little below the lowest to where the runs stand after a fifth of their
    steps: the falls at the beginning are all alike and would leave no room for what differs.
    """
    smooth = {name: list(_running_means(losses)) for name, losses in curves.items()}
    num = max(map(len, smooth.values()))
    top = max(losses[num // 5] for losses in smooth.values())
    lowest = min(map(min, smooth.values()))
    bottom = lowest - (top - lowest) / 10

    def place(step: int, loss: float) -> str:
        share = (loss - bottom) / (top - bottom)
        return f"{50 + (width - 70) * step / num:.1f},{20 + (height - 60) * (1 - share):.1f}"

    def drawn(losses: Sequence[float]) -> str:
        return " ".join(place(step, loss) for step, loss in enumerate(losses) if loss <= top)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<path d="M50,20 V{height - 40} H{width - 20}" fill="none" stroke="#999"/>',
        f'<text x="{width / 2}" y="{height - 12}">step</text>',
        f'<text x="56" y="{height - 46}" fill="#999">loss, mean of {MEANS} steps</text>',
        f'<text x="44" y="24" text-anchor="end">{top:.2f}</text>',
        f'<text x="44" y="{height - 36}" text-anchor="end">{bottom:.2f}</text>',
        f'<text x="{width - 20}" y="{height - 24}" text-anchor="end">{num}</text>',
    ]
    for row, (name, losses) in enumerate(smooth.items()):
        lines.append(
            f'<polyline points="{drawn(losses)}" fill="none" stroke="{COLOURS[name]}" stroke-width="1.5"/>'
        )
        label = name if name == "float32" else f"bfloat16, rounded {name}"
        lines.append(f'<text x="{width - 200}" y="{40 + 18 * row}" fill="{COLOURS[name]}">{label}</text>')
    return "\n".join([*lines, "</svg>", ""])


def _running_means(losses: Sequence[float], window: int = MEANS) -> Iterator[float]:
    for end in range(1, len(losses) + 1):
        yield statistics.fmean(losses[max(0, end - window) : end])


@contextmanager
def _rounding_to_nearest() -> Iterator[None]:
    def nearest(target: Tensor, source: Tensor, rng: torch.Generator) -> None:
        target.copy_(source)

    with patch("sfumato.training.update.stepping.round_stochastically_", nearest):
        yield


if __name__ == "__main__":
    main()
