"""What full-size FLUX.1 takes in memory under the settings that docs/memory.md recommends, item by item.

The models are files that are made of holes: headers of the real size and no data. The command lines are those
of the guide; `sfumato account` counts each on a graphics card that need not be there.

    python benchmarks/memory_account.py > account.json
"""

from __future__ import annotations

import gzip
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.config.rules.evaluation import imply
from sfumato.config.rules.tables import rules_of
from sfumato.config.run.distributed import DistributedConfig
from sfumato.training.core import distributed
from sfumato.training.run.account import account
from sfumato.training.run.setup import prepare
from tests import tiny

NAMES = Path(__file__).resolve().parents[1] / "tests" / "models" / "families" / "flux" / "names"
PARTS = {
    "pretrained_model_name_or_path": "flux_dev_bfl",
    "clip_l": "clip_l",
    "t5xxl": "t5xxl",
    "ae": "flux_ae_bfl",
}
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}

COMMON = """
--mixed_precision bf16 --save_precision bf16 --seed 42 --gradient_checkpointing --cache_latents_to_disk
--cache_text_encoder_outputs_to_disk --max_data_loader_n_workers 2 --max_train_epochs 1 --highvram
--timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --guidance_scale 1.0
--resolution 1024
"""
ADAFACTOR = """
--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False
--lr_scheduler constant_with_warmup --max_grad_norm 0
"""
LORA = """
--network_module networks.lora_flux --network_dim 4 --learning_rate 1e-4 --network_train_unet_only --fp8_base
"""
FULL = "--learning_rate 5e-5 --fused_backward_pass --full_bf16"

SETTINGS: dict[str, tuple[str, str]] = {
    "LoRA, 24 GB": ("flux_train_network", f"{LORA} --optimizer_type adamw8bit --train_batch_size 2"),
    "LoRA, 16 GB": ("flux_train_network", f"{LORA} {ADAFACTOR} --train_batch_size 1"),
    "LoRA, 16 GB, two images": (
        "flux_train_network",
        f"{LORA} {ADAFACTOR} --train_batch_size 2 --cpu_offload_checkpointing",
    ),
    "LoRA, 12 GB": (
        "flux_train_network",
        f"{LORA} {ADAFACTOR} --train_batch_size 1 --split_mode --network_args train_blocks=single",
    ),
    "LoRA, 8 GB": ("flux_train_network", f"{LORA} {ADAFACTOR} --train_batch_size 1 --blocks_to_swap 28"),
    "fine-tuning, 24 GB": ("flux_train", f"{FULL} {ADAFACTOR} --train_batch_size 1 --blocks_to_swap 8"),
    "fine-tuning, 16 GB": ("flux_train", f"{FULL} {ADAFACTOR} --train_batch_size 1 --blocks_to_swap 20"),
    "fine-tuning, 12 GB": ("flux_train", f"{FULL} {ADAFACTOR} --train_batch_size 1 --blocks_to_swap 28"),
    "fine-tuning, 8 GB": ("flux_train", f"{FULL} {ADAFACTOR} --train_batch_size 1 --blocks_to_swap 35"),
}


def main() -> None:
    """Print all accounts as JSON, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        options = [*write_models(data), *write_images(data), "--output_dir", folder, "--output_name", "x"]
        chosen = sys.argv[1:] or SETTINGS
        print(json.dumps({name: count(name, options) for name in chosen}, indent=1))


def count(name: str, options: list[str]) -> dict[str, Any]:
    """Return the account of one setting."""
    script, own = SETTINGS[name]
    argv = [*options, *COMMON.split(), *own.split()]
    run = parse(script_named(script), argv, prog=script).run
    run, _ = imply(run, rules_of(run))
    return account(prepare(run, distributed.start(run[DistributedConfig])), "cuda").as_dict()


def write_models(folder: Path) -> list[str]:
    """Write files of the published names, dtypes and shapes whose data are holes; return their options."""
    tiny.flux(folder / "tiny")
    options = ["--tokenizer_cache_dir", str(folder / "tiny" / "tokenizers")]
    for option, table in PARTS.items():
        path = folder / f"{table}.safetensors"
        _write_holes(path, gzip.decompress((NAMES / f"{table}.tsv.gz").read_bytes()).decode())
        options += [f"--{option}", str(path)]
    return options


def _write_holes(path: Path, table: str) -> None:
    header, end = {}, 0
    for line in table.splitlines():
        name, dtype, sides = line.split("\t")
        shape = [int(side) for side in sides.split("x") if side]
        start, end = end, end + math.prod(shape) * WIDTHS[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # tensors can be mapped only where they are aligned
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        os.truncate(file.fileno(), 8 + len(encoded) + end)


def write_images(folder: Path) -> list[str]:
    """Write images of 1024 x 1024 with captions; return the option that names them."""
    subset = folder / "data" / "1_sks cat"
    subset.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (1024, 1024)).save(subset / f"{number}.png")
    return ["--train_data_dir", str(folder / "data"), "--caption_extension", ".txt"]


if __name__ == "__main__":
    main()
