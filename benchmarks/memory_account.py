"""What full-size FLUX.1 takes in memory under the settings that docs/memory.md recommends, item by item.

The models are files that are made of holes: headers of the real size and no data. The command lines are those
of the guide; `sfumato account` counts each on a graphics card that need not be there.

    python benchmarks/memory_account.py > account.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import full_size_runs
from benchmarks.full_size_runs import write_images, write_model
from tests import tiny

NAMES = Path(__file__).resolve().parents[1] / "tests" / "models" / "families" / "flux" / "names"
PARTS = {
    "pretrained_model_name_or_path": "flux_dev_bfl",
    "clip_l": "clip_l",
    "t5xxl": "t5xxl",
    "ae": "flux_ae_bfl",
}

COMMON = """
--mixed_precision bf16 --save_precision bf16 --seed 42 --gradient_checkpointing --cache_latents_to_disk
--cache_text_encoder_outputs_to_disk --max_data_loader_n_workers 2 --max_train_epochs 1 --highvram
--timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --guidance_scale 1.0
--resolution 1024 --output_name x
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
        options = [*write_models(data), *write_images(data, 1024), "--output_dir", folder]
        chosen = sys.argv[1:] or SETTINGS
        print(json.dumps({name: count(name, options) for name in chosen}, indent=1))


def count(name: str, options: list[str]) -> dict[str, Any]:
    """Return the account of one setting."""
    script, own = SETTINGS[name]
    return full_size_runs.count(script, [*options, *COMMON.split(), *own.split()]).as_dict()


def write_models(folder: Path) -> list[str]:
    """Write files of the published names, dtypes and shapes whose data are holes; return their options."""
    tiny.flux(folder / "tiny")
    options = ["--tokenizer_cache_dir", str(folder / "tiny" / "tokenizers")]
    for option, table in PARTS.items():
        path = folder / f"{table}.safetensors"
        write_model(path, NAMES / f"{table}.tsv.gz")
        options += [f"--{option}", str(path)]
    return options


if __name__ == "__main__":
    main()
