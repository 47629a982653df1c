"""What programs import from `library` and from the scripts: one test for each program, as it does it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.checkpoints.hashes import adapter_hashes
from sfumato.cli.folder_package import LIBRARY_MODULES
from sfumato.clients.names import NAMES
from sfumato.errors import UserError
from tests import tiny

DROP_INS = Path(__file__).parents[2] / "sd-scripts"


@pytest.fixture(autouse=True)
def _drop_ins_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DROP_INS)


def imported(module: str, name: str) -> Any:
    """Return what `from module import name` gives."""
    return getattr(importlib.import_module(module), name)


FORM = """
import json, sys
sys.path.append(sys.argv[1])
from library import flux_train_utils, huggingface_util
import train_network

parser = train_network.setup_parser()
flux_train_utils.add_flux_train_arguments(parser)
rows = [(a.dest, a.option_strings[0], str(a.type), a.help, a.default, a.required) for a in parser._actions]
print(json.dumps({"rows": rows, "torch": "torch" in sys.modules}))
"""


def test_fluxgym_builds_its_form_in_another_folder_and_waits_for_no_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORM, str(DROP_INS)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    rows = {dest: (flag, kind, default, required) for dest, flag, kind, _, default, required in found["rows"]}
    assert not found["torch"]
    assert len(rows) == len(found["rows"]) > 190
    assert rows["cache_latents"] == ("--cache_latents", "None", False, False)
    assert rows["t5xxl"] == ("--t5xxl", "<class 'str'>", None, False)
    assert rows["network_dim"] == ("--network_dim", "<class 'int'>", None, False)
    assert rows["optimizer_args"][2] is None
    assert all(text for *_, text, _, _ in found["rows"])
    assert all(kind == "None" for _, kind, default, _ in rows.values() if default is False)


@pytest.mark.parametrize("home", ["train_util", "dataset"])
def test_lora_easy_and_kohya_colab_count_steps_by_buckets(home: str) -> None:
    manager_of = imported(f"library.{home}", "BucketManager")
    manager = manager_of(False, (512, 512), 256, 1024, 64)
    manager.make_buckets()
    for size in ((512, 512), (600, 590), (1000, 500)):
        reso, resized, _ = manager.select_bucket(*size)
        assert resized[0] >= reso[0] and resized[1] >= reso[1]  # noqa: PT018
        manager.add_image(reso, "any")
    assert (manager.resos, [len(bucket) for bucket in manager.buckets]) == ([(512, 512), (704, 320)], [2, 1])

    only = manager_of(False, [64, 64], None, None, None)
    only.set_predefined_resos([[64, 64]])
    assert only.select_bucket(300, 100)[0] == (64, 64)
    smaller = manager_of(True, (512, 512), 256, 1024, 64)
    assert smaller.select_bucket(200, 130)[0] == (192, 128)


def test_kohya_ss_and_lora_easy_sign_a_resized_adapter() -> None:
    assert imported("library.utils", "setup_logging")() is None
    assert imported("library.model_util", "is_safetensors")("a/b.SafeTensors")
    tensors, metadata = {"a": torch.arange(6.0).view(2, 3)}, {"ss_epoch": "1", "other": "x"}
    found = imported("library.train_util", "precalculate_safetensors_hashes")(tensors, metadata)
    assert found == tuple(adapter_hashes(tensors, metadata).values())
    assert [len(text) for text in found] == [64, 8]


def test_kohya_ss_walks_the_modules_of_stable_diffusion(tmp_path: Path) -> None:
    load = imported("library.model_util", "load_models_from_stable_diffusion_checkpoint")
    encoder, vae, unet = load(False, str(tiny.sd(tmp_path).path))
    classes = {type(module).__name__ for module in unet.modules()}
    assert {"Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"} <= classes
    assert "CLIPAttention" in {type(module).__name__ for module in encoder.modules()}
    assert isinstance(vae, nn.Module)


def test_kohya_ss_rewrites_an_sdxl_with_the_unet_of_another(tmp_path: Path) -> None:
    path = tiny.sdxl(tmp_path, depths=(0, 1, 1)).path
    util = importlib.import_module("library.sdxl_model_util")
    encoder1, encoder2, vae, unet, scale, info = util.load_models_from_sdxl_checkpoint(None, str(path), "cpu")
    assert (round(float(scale), 4), info) == (4.6052, None)
    with torch.no_grad():
        unet.conv_in.bias += 1
    tensors = util.convert_diffusers_unet_state_dict_to_sdxl(unet.state_dict())
    model = util.sdxl_original_unet.SdxlUNet2DConditionModel()
    util._load_state_dict_on_device(model, tensors, device="cpu", dtype=torch.float32)
    out = tmp_path / "out.safetensors"
    util.save_stable_diffusion_checkpoint(
        *(str(out), encoder1, encoder2, model, 0, 0, info, vae, scale, {"modelspec.title": "mine"})
    )
    _check_first_bias(load_file(out), load_file(path))


def _check_first_bias(written: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    first = "model.diffusion_model.input_blocks.0.0.bias"
    assert written.keys() == before.keys()
    assert torch.allclose(written[first], before[first] + 1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in written.items() if key != first)


def test_a_wrapper_of_kohya_colab_meets_a_mistake_as_an_exception(tmp_path: Path) -> None:
    parser = imported("sdxl_train_network", "setup_parser")()
    args = parser.parse_args(["--output_dir", str(tmp_path / "out"), "--output_name", "a/b"])
    with pytest.raises(UserError, match="--output_name is 'a/b'"):
        imported("sdxl_train_network", "SdxlNetworkTrainer")().train(args)


def test_options_of_a_file_come_under_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_text("[one]\nseed = 3\nnetwork_dim = '8'\n[two]\nstray = 1\n", "utf-8")
    parser = imported("train_network", "setup_parser")()
    monkeypatch.setattr(sys, "argv", ["x.py", "--seed", "5", "--config_file", str(tmp_path / "a")])
    args = imported("library.args", "read_config_from_file")(parser.parse_args(), parser)
    assert (args.seed, args.network_dim, args.stray, args.learning_rate) == (5, "8", 1, 2e-06)
    none = Namespace(config_file=None)
    assert imported("library.train_util", "read_config_from_file")(none, parser) is none


def test_every_name_is_there_and_any_other_tells_what_to_use() -> None:
    assert {f"library.{name}" for name in LIBRARY_MODULES} == {name for name in NAMES if "." in name}
    for module, offers in NAMES.items():
        assert all(imported(module.replace("/", "."), name) is not None for name in offers), module
    with pytest.raises(
        ImportError, match=r"library.train_util has no glob_images here.*sfumato\.read_dataset"
    ):
        from library.train_util import glob_images  # noqa: F401  # pyright: ignore
    assert not hasattr(importlib.import_module("library.train_util"), "__wrapped__")
