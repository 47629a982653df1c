"""What full-size models take in memory under the settings that docs/memory.md recommends, item by item.

The models are files that are made of holes: headers of the real size and no data. The command lines are those
of the guide; `sfumato account` counts each on a graphics card that need not be there.

    python benchmarks/memory_account.py [SETTING ...] > account.json

A setting takes about a minute of a processor; it is shown as soon as it is known, on the standard error.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import full_size_runs
from benchmarks.full_size_runs import write_images, write_model
from tests import tiny

NAMES = Path(__file__).resolve().parents[1] / "tests" / "models" / "families"
TEXTS = {"clip_l": "flux/names/clip_l", "t5xxl": "flux/names/t5xxl"}
AUTOENCODER = "flux/names/flux_ae_bfl"
"""Both families' have the same tensors."""
SD3_OTHERS = {**TEXTS, "clip_g": "sd3/names/clip_g", "vae": AUTOENCODER}
BASE = "pretrained_model_name_or_path"
MODELS = {
    "FLUX.1 dev": {BASE: "flux/names/flux_dev_bfl", **TEXTS, "ae": AUTOENCODER},
    "3 medium": {BASE: "sd3/names/sd3_medium_mmdit", **SD3_OTHERS},
    "3.5 medium": {BASE: "sd3/names/sd35_medium_mmdit", **SD3_OTHERS},
    "3.5 large": {BASE: "sd3/names/sd35_large_mmdit", **SD3_OTHERS},
}
"""The table of each file's tensors, by the option that names the file."""

COMMON = """
--mixed_precision bf16 --save_precision bf16 --seed 42 --gradient_checkpointing --cache_latents_to_disk
--cache_text_encoder_outputs_to_disk --max_data_loader_n_workers 2 --max_train_epochs 1 --highvram
--resolution 1024 --output_name x
"""
FLUX = (
    "--timestep_sampling shift --discrete_flow_shift 3.1582 --model_prediction_type raw --guidance_scale 1.0"
)
ADAFACTOR = """
--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False
--lr_scheduler constant_with_warmup --max_grad_norm 0
"""
LORA = f"""
--network_module networks.lora_flux --network_dim 4 --learning_rate 1e-4 --network_train_unet_only --fp8_base
{FLUX}
"""
SD3_LORA = """
--network_module networks.lora_sd3 --network_dim 4 --learning_rate 1e-4 --network_train_unet_only
--optimizer_type adamw8bit
"""
FULL = f"--learning_rate 5e-5 --fused_backward_pass --full_bf16 {FLUX}"

ADAPTED = {
    "3 medium, 12 GB": "--train_batch_size 8",
    "3 medium, 8 GB": "--train_batch_size 1",
    "3.5 medium, 16 GB": "--train_batch_size 8",
    "3.5 medium, 8 GB": "--train_batch_size 1",
    "3.5 large, 24 GB": "--train_batch_size 2",
    "3.5 large, 16 GB": "--train_batch_size 2 --fp8_base",
    "3.5 large, 12 GB": "--train_batch_size 1 --fp8_base",
    "3.5 large, 8 GB": "--train_batch_size 1 --fp8_base --blocks_to_swap 16",
}
"""LoRAs of Stable Diffusion 3, and the smallest card that each fits on."""
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
    **{name: ("sd3_train_network", f"{SD3_LORA} {own}") for name, own in ADAPTED.items()},
}


def main() -> None:
    """Print all accounts as JSON, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        tiny.flux(data / "tiny")
        tiny.sd3(data / "tiny")  # with a tokenizer more
        options = ["--tokenizer_cache_dir", str(data / "tiny" / "tokenizers"), "--output_dir", folder]
        options += write_images(data, 1024)
        chosen = sys.argv[1:] or SETTINGS
        print(json.dumps({name: count(name, data, options) for name in chosen}, indent=1))


def count(name: str, folder: Path, options: list[str]) -> dict[str, Any]:
    """Return the account of one setting."""
    script, own = SETTINGS[name]
    model = name.partition(",")[0] if name in ADAPTED else "FLUX.1 dev"
    argv = [*options, *write_files(folder, MODELS[model]), *COMMON.split(), *own.split()]
    found = full_size_runs.count(script, argv).as_dict()
    print(json.dumps({name: found}), file=sys.stderr, flush=True)
    return found


def write_files(folder: Path, tables: Mapping[str, str]) -> list[str]:
    """Write files of the published names, dtypes and shapes whose data are holes; return their options."""
    options = []
    for option, table in tables.items():
        path = folder / f"{Path(table).name}.safetensors"
        write_model(path, NAMES / f"{table}.tsv.gz")
        options += [f"--{option}", str(path)]
    return options


if __name__ == "__main__":
    main()
