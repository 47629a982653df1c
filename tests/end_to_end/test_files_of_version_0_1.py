"""What version 0.1 left is still good: caches, the index of a folder, a state, a drop-in folder.

`tests/compat/version_0_1` holds a folder of two images as that version left it, the state of the second of
four steps, and the LoRA of the fourth.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sfumato import dropin
from sfumato.cli.main import script
from sfumato.data.sources import sources
from tests import tiny

LEFT = Path(__file__).parents[1] / "compat" / "version_0_1"
OPTIONS = """
--network_module networks.lora_flux --network_dim 1 --network_args train_blocks=single
--network_train_unet_only --cache_latents_to_disk --cache_text_encoder_outputs_to_disk
--t5xxl_max_token_length 16 --resolution 64 --caption_extension .txt --learning_rate 1e-2 --seed 5
--max_data_loader_n_workers 0 --max_train_steps 4 --output_name lora
"""


def test_a_cache_an_index_and_a_state_are_taken_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.flux(tmp_path / "model", hidden=32, heads=1, depth=1, depth_single=1)
    folder = tmp_path / "data" / "1_sks cat"
    shutil.copytree(LEFT / "images", folder)
    for _, name, finding in _findings(folder):  # size, time, what was found
        time_ns = int(finding.split()[1])
        os.utime(folder / name, ns=(time_ns, time_ns))
    before = _findings(folder), _times(folder)

    def read_again(path: str) -> None:
        raise AssertionError(f"{path} is opened though the index knows it")

    monkeypatch.setattr(sources, "read_header", read_again)
    places = ["--train_data_dir", str(folder.parent), "--output_dir", str(tmp_path / "out")]
    resume = ["--resume", str(LEFT / "state")]
    assert script("flux_train_network", [*model.arguments, *places, *OPTIONS.split(), *resume]) == 0

    assert (_findings(folder), _times(folder)) == before
    made, expected = (load_file(f / "lora.safetensors") for f in (tmp_path / "out", LEFT))
    assert made.keys() == expected.keys()
    apart = torch.stack([(made[name] - expected[name]).double().norm() for name in made]).norm()
    assert apart < 1e-4 * torch.stack([tensor.double().norm() for tensor in expected.values()]).norm()


def _findings(folder: Path) -> list[tuple[str, str, str]]:
    """Return what the index has noted: kind, file name, stamped finding."""
    with closing(sqlite3.connect(folder / ".sfumato-index.sqlite")) as index:
        return sorted(index.execute("SELECT * FROM findings"))


def _times(folder: Path) -> dict[str, float]:
    return {file.name: file.stat().st_mtime for file in folder.glob("[!.]*")}


def test_network_modules_in_a_drop_in_folder_find_what_they_import() -> None:
    written = """
from sfumato.adapters import block_helpers
from sfumato.adapters.legacy import PluginModule

_module = PluginModule("networks.lora")
create_network = _module.create_network
get_block_index = block_helpers.get_block_index
"""
    module: dict[str, Any] = {}
    exec(written, module)
    assert isinstance(module["create_network"].__self__, dropin.PluginModule)
    assert module["get_block_index"]("lora_unet_mid_block_attentions_0_proj_in") == 12
