"""The demo's two training runs: ordinary `sfumato train flux lora` commands, side by side."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sfumato.demo import base
from sfumato.errors import UserError

_OPTIONS = {
    "network_dim": "8",
    "network_alpha": "64",
    "learning_rate": "4e-3",
    "lr_scheduler": "cosine",
    "lr_warmup_steps": "10",
    "optimizer_type": "AdamW",
    "timestep_sampling": "uniform",
    "model_prediction_type": "raw",
    "guidance_scale": "1",
    "t5xxl_max_token_length": str(base.TEXT_LENGTH),
    "max_data_loader_n_workers": "0",
    "max_train_steps": "200",
    "seed": "1",
}
_SWITCHES = (
    *("network_train_unet_only", "cache_latents", "cache_text_encoder_outputs", "apply_t5_attn_mask"),
    "overwrite",  # the demo can be run again
)


def train(folder: Path, data_sets: Mapping[str, Path]) -> dict[str, Path]:
    """Train a LoRA on each data set, all at the same time; return the LoRA files.

    The last one shows its progress; the others write theirs to a file.

    Raises:
        UserError: one of them failed.
    """
    *quiet, shown = data_sets
    processes = {name: _start(folder, name, data_sets[name], is_quiet=True) for name in quiet}
    processes[shown] = _start(folder, shown, data_sets[shown], is_quiet=False)
    try:
        codes = {name: process.wait() for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.terminate()
    for name, code in codes.items():
        if code:
            where = "the lines above" if name == shown else _log_file(folder, name)
            raise UserError(f"the training of {name} ended with status {code}; {where} say why")
    return {name: lora_file(folder, name) for name in data_sets}


def command(folder: Path, name: str, data_set: Path) -> list[str]:
    """Return the command that trains one of the demo's LoRAs."""
    options = _OPTIONS | {
        "dataset_config": str(data_set),
        "output_dir": str(folder),
        "output_name": name,
    }
    flags = [text for option, value in options.items() for text in (f"--{option}", value)]
    flags += [f"--{switch}" for switch in _SWITCHES]
    return ["sfumato", "train", "flux", "lora", *base.training_options(), *flags]


def lora_file(folder: Path, name: str) -> Path:
    """Return where a run saves its LoRA."""
    return folder / f"{name}.safetensors"


def _start(folder: Path, name: str, data_set: Path, *, is_quiet: bool) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", *command(folder, name, data_set)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # layers this small only lose by sharing
    if not is_quiet:
        return subprocess.Popen(arguments, env=environment)
    with _log_file(folder, name).open("wb") as file:
        return subprocess.Popen(arguments, env=environment, stdout=file, stderr=subprocess.STDOUT)


def _log_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.log"
