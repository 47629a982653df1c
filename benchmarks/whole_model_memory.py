"""What training all of Stable Diffusion 1.5, XL and 3 takes in memory, by option, and what block swap saves.

The models have their published sizes and no numbers, and each run is counted by what trainers foresee their
memory with (`sfumato account`): one image a batch, of 512 x 512 or 1024 x 1024. Its latents come from the
cache, and the text of SDXL and 3, too, where no encoder is trained; T5's does in any case. In GB of 10^9
bytes. The page of sd-scripts says of SDXL in fp32 with `--fused_backward_pass`, Adafactor and one image a
batch: about 17 GB.

    python benchmarks/whole_model_memory.py [sd15 | sdxl | sd3 | swap] ... > whole_models.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.full_size_runs import count, read_table, write_header, write_images, write_model
from sfumato.models.components.stable_diffusion.base import StableDiffusion
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER, Family
from sfumato.nn import offload
from sfumato.training.core.memory_account import Account
from tests import tiny

NAMES = Path(__file__).resolve().parents[1] / "tests/models/components/stable_diffusion/names"
ADAFACTOR = (
    "--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False"
)
FP32, MIXED, BF16 = "--mixed_precision no", "--mixed_precision bf16", "--mixed_precision bf16 --full_bf16"
LESS = "--gradient_checkpointing"
EIGHT_BIT = "--optimizer_type AdamW8bit"
FUSED = f"{LESS} {ADAFACTOR} --fused_backward_pass"
COMMON = """
--cache_latents --learning_rate 1e-5 --max_train_steps 10 --train_batch_size 1 --max_grad_norm 0
--output_name x --save_model_as safetensors
"""
SETTINGS = {
    "fp32, AdamW, no checkpointing": FP32,
    "fp32, AdamW": f"{FP32} {LESS}",
    "fp32, AdamW8bit": f"{FP32} {LESS} {EIGHT_BIT}",
    "fp32, Adafactor": f"{FP32} {LESS} {ADAFACTOR}",
    "fp32, AdamW, 10 groups": f"{FP32} {LESS} --fused_optimizer_groups 10",
    "fp32, Adafactor, 10 groups": f"{FP32} {LESS} {ADAFACTOR} --fused_optimizer_groups 10",
    "fp32, Adafactor, fused": f"{FP32} {FUSED}",
    "fp32, Adafactor, fused, half swapped": f"{FP32} {FUSED} --blocks_to_swap HALF",
    "fp32, Adafactor, fused, all swapped": f"{FP32} {FUSED} --blocks_to_swap ALL",
    "mixed, AdamW8bit": f"{MIXED} {LESS} {EIGHT_BIT}",
    "mixed, Adafactor, fused": f"{MIXED} {FUSED}",
    "bf16, AdamW8bit": f"{BF16} {LESS} {EIGHT_BIT}",
    "bf16, AdamW8bit, fused": f"{BF16} {LESS} {EIGHT_BIT} --fused_backward_pass",
    "bf16, Adafactor, fused": f"{BF16} {FUSED}",
    "bf16, Adafactor, fused, half swapped": f"{BF16} {FUSED} --blocks_to_swap HALF",
    "bf16, Adafactor, fused, all swapped": f"{BF16} {FUSED} --blocks_to_swap ALL",
}
WITH_ENCODERS = (
    "fp32, AdamW",
    "fp32, Adafactor, 10 groups",
    "fp32, Adafactor, fused",
    "bf16, Adafactor, fused",
)
"""Settings that are counted with trained text encoders, too."""
FAMILIES = NAMES.parents[2] / "families"
SD3 = {"3 medium": "sd3_medium", "3.5 medium": "sd35_medium", "3.5 large": "sd35_large"}
SD3_RATES = "--learning_rate_te1 1e-6 --learning_rate_te2 1e-6 --use_t5xxl_cache_only"
SD3_SETTINGS = (
    "fp32, Adafactor, fused",
    "bf16, AdamW8bit, fused",
    "bf16, Adafactor, fused",
    "bf16, Adafactor, fused, half swapped",
    "bf16, Adafactor, fused, all swapped",
)


class Model:
    """A model of its published size.

    Attributes:
        most: the largest `--blocks_to_swap`.
    """

    def __init__(self, path: Path, family: Family) -> None:
        self.path = path
        denoiser = family.load(DENOISER, torch.bfloat16, torch.device("meta"))
        self.num_bytes = offload.size_of(denoiser)
        self.sizes = [offload.size_of(block) for block in family.blocks(DENOISER, denoiser)]
        self.most = offload.most_swapped(self.sizes)

    @classmethod
    def of_table(cls, folder: Path, table: str, family: type[StableDiffusion]) -> Model:
        """Return the model with the tensors of a table."""
        path = folder / f"{table}.safetensors"
        write_model(path, NAMES / f"{table}.tsv.gz")
        return cls(path, family(path))

    @classmethod
    def sd3(cls, folder: Path, name: str) -> Model:
        """Return a Stable Diffusion 3 with all its parts in one file."""
        path = folder / f"{name}.safetensors"
        texts = {"clip_l": "flux/names/clip_l", "clip_g": "sd3/names/clip_g", "t5xxl": "flux/names/t5xxl"}
        tables = {f"text_encoders.{part}.transformer.": table for part, table in texts.items()}
        tables["model.diffusion_model."] = f"sd3/names/{name}_mmdit"
        vae = {name: ("F16", shape) for name, shape in tiny.autoencoder(128, 16, (1, 2, 4, 4), 2)}
        header = {f"first_stage_model.{name}": value for name, value in vae.items()}
        for prefix, table in tables.items():
            held = read_table(FAMILIES / f"{table}.tsv.gz")
            header |= {prefix + name: value for name, value in held.items()}
        write_header(path, header)
        return cls(path, Sd3Family({DENOISER: path}))

    def swapped(self) -> dict[str, Any]:
        """Return what a UNet in bfloat16 has on the device and in RAM, by the number of blocks."""
        rows = {"0": {"travel": 0, "device": _gb(self.num_bytes), "ram": 0.0}}
        for num in sorted({1, 2, *range(4, self.most, 4), self.most}):
            chosen = [self.sizes[index] for index in offload.choose(self.sizes, num)]
            device = self.num_bytes - sum(chosen) + offload.SLOTS * max(chosen)
            rows[str(num)] = {"travel": len(chosen), "device": _gb(device), "ram": _gb(sum(chosen))}
        return rows


def main() -> None:
    """Print the counts as JSON."""
    chosen = sys.argv[1:] or ["sd15", "sdxl", "sd3", "swap"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizers = tiny.sd(folder / "tiny").tokenizers
        sd15 = Model.of_table(folder, "sd15_ldm", SdFamily)
        sdxl = Model.of_table(folder, "sdxl_base_sgm", SdxlFamily)
        places = ["--tokenizer_cache_dir", str(tokenizers), "--output_dir", name]
        found: dict[str, Any] = {}
        if "sd15" in chosen:
            argv = [*places, *write_images(folder / "small", 512), "--resolution", "512"]
            found["sd15"] = dict(counted("fine_tune", sd15, argv, "", "--learning_rate_te 1e-6"))
        if "sdxl" in chosen:
            argv = [*places, *write_images(folder / "large", 1024), "--resolution", "1024"]
            rates = "--learning_rate_te1 1e-6 --learning_rate_te2 1e-6"
            found["sdxl"] = dict(counted("sdxl_train", sdxl, argv, "--cache_text_encoder_outputs", rates))
        if "sd3" in chosen:
            texts = ["--tokenizer_cache_dir", str(tiny.sd3(folder / "tiny3").tokenizers)]
            argv = [*places, *texts, *write_images(folder / "third", 1024), "--resolution", "1024"]
            for name, table in SD3.items():
                shared = ("sd3_train", Model.sd3(folder, table), argv, "--cache_text_encoder_outputs")
                found[name] = dict(counted(*shared, SD3_RATES, SD3_SETTINGS))
        if "swap" in chosen:
            sd21 = Model.of_table(folder, "sd21_768_ldm", SdFamily)
            found["swap"] = {"sd15": sd15.swapped(), "sd21": sd21.swapped(), "sdxl": sdxl.swapped()}
    print(json.dumps(found, indent=1))


def counted(
    script: str,
    model: Model,
    argv: Sequence[str],
    frozen: str,
    rates: str,
    settings: Iterable[str] = tuple(SETTINGS),
) -> Iterator[tuple[str, Any]]:
    """Yield what each setting takes.

    Args:
        frozen: options where text encoders stay as they are.
        rates: of text encoders that are trained.
        settings: those that are counted.
    """
    own = ["--pretrained_model_name_or_path", str(model.path), *argv, *COMMON.split()]
    for name in settings:
        options = SETTINGS[name]
        told = options.replace("HALF", str(model.most // 2)).replace("ALL", str(model.most)).split()
        yield _shown(name, summary(count(script, [*own, *told, *frozen.split()])))
        if name in WITH_ENCODERS:
            trained = ["--train_text_encoder", *rates.split()]
            yield _shown(f"{name}, with text encoders", summary(count(script, [*own, *told, *trained])))


def _shown(name: str, figures: dict[str, float]) -> tuple[str, dict[str, float]]:
    """Return a row, which is shown as soon as it is known: a count takes minutes on a slow machine."""
    print(json.dumps({name: figures}), file=sys.stderr, flush=True)
    return name, figures


def summary(account: Account) -> dict[str, float]:
    """Return what a step holds at its worst moment, in GB."""
    step = account.phases[-1]
    found: dict[str, float] = {}
    for item in step.items:
        found[item.name] = found.get(item.name, 0.0) + _gb(item.device)
    return {**found, "together": _gb(step.device), "in RAM": _gb(step.host)}


def _gb(num_bytes: int) -> float:
    return round(num_bytes / 1e9, 3)


if __name__ == "__main__":
    main()
