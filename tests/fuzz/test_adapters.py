"""Adapter files with tensors of any shape, dtype and value: commands do their work, or say what is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from sfumato.adapters.network.base_weights import BaseAdapters
from sfumato.adapters.network.loading import network_from_file
from sfumato.cli.main import script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from tests import tiny
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome

CPU = torch.device("cpu")
NAMES = {
    "lora_unet_double_blocks_0_img_attn_proj": (64, 64),
    "lora_unet_double_blocks_0_img_attn_qkv": (192, 64),
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (64, 64),
    "oft_unet_double_blocks_0_img_attn_proj": (64, 64),
    "transformer.single_transformer_blocks.0.attn.to_q": (64, 64),
    "transformer.single_transformer_blocks.0.attn.to_k": (64, 64),
    "base_model.model.transformer_blocks.0.attn.to_v": (64, 64),
    "diffusion_model.double_blocks.0.img_attn.norm.query_norm": (16, 1),
}
"""Layers of the tiny FLUX by names of several programs, with the (outputs, inputs) of each."""


def forms(out: int, into: int) -> dict[str, dict[str, Any]]:
    """Return the shapes of the tensors that each kind of adapter has for a layer."""
    down, up, number = (2, into), (out, 2), {"alpha": ()}
    block = (out // 4, into // 4 or 1)
    halves = {"lora_down.weight": down, "lora_up.weight": up, **number}
    return {
        "lora": halves,
        "dora": halves | {"dora_scale": (out, 1)},
        "peft": {"lora_A.weight": down, "lora_B.weight": up},
        "split": {"lora_down.weight": down, **{f"lora_up.{i}.weight": up for i in range(3)}, **number},
        "loha": {"hada_w1_a": up, "hada_w1_b": down, "hada_w2_a": up, "hada_w2_b": down, **number},
        "lokr": {"lokr_w1": (4, 4), "lokr_w2_a": (block[0], 2), "lokr_w2_b": (2, block[1]), **number},
        "lokr, whole": {"lokr_w1": (4, 4), "lokr_w2": block, **number},
        "oft": {"oft_blocks": (4, block[0], block[0]), **number},
        "boft": {"oft_blocks": (2, 4, block[0], block[0]), **number},
        "peft oft": {"oft_R.weight": (4, 120)},
        "glora": {"a1.weight": down, "a2.weight": (into, 2), "b1.weight": down, "b2.weight": up, **number},
        "ia3": {"weight": (out,), "on_input": ()},
        "full": {"diff": (out, into), "diff_b": (out,)},
        "norm": {"w_norm": (out,), "b_norm": (out,)},
        "replaced": {"set_weight": (out, into)},
        "tucker": halves | {"lora_mid.weight": (2, 2, 1, 1)},
    }


KINDS = sorted(forms(8, 8))
LEAVES = sorted(
    {leaf for form in forms(8, 8).values() for leaf in form}
    | {"reshape_weight", "rescale", "scalar", "hada_t1", "lokr_t2"}
)
ODD_SHAPES = [(), (1,), (5,), (0,), (0, 4), (64,), (2, 2, 2), (4, 4, 1, 1), (1, 1), (64, 1), (2, 64, 3, 3)]
SHAPES = st.sampled_from(ODD_SHAPES) | st.lists(st.integers(0, 5), max_size=5).map(tuple)
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn]
DTYPES = [*FLOATS, torch.int64, torch.bool]
VALUES = [0.0, 0.125, -1.0, 3e38, float("nan"), float("inf")]


@st.composite
def layers(draw: st.DrawFn) -> dict[str, Tensor]:
    """Return the tensors of an adapter, most of them as they should be."""
    tensors: dict[str, Tensor] = {}
    kind = draw(st.just("lora") | st.sampled_from(KINDS))
    for name in draw(st.lists(st.sampled_from(sorted(NAMES)), min_size=1, max_size=3, unique=True)):
        if draw(st.integers(0, 9)) == 0:
            kind = draw(st.sampled_from(KINDS))
        for leaf, shape in forms(*NAMES[name])[kind].items():
            tensors[f"{name}.{leaf}"] = torch.full(shape, 0.5)
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
        _damage(draw, tensors)
    return tensors


def _damage(draw: st.DrawFn, tensors: dict[str, Tensor]) -> None:
    key = draw(st.sampled_from(sorted(tensors)))
    match draw(st.sampled_from(["shape", "shape", "dtype", "value", "leave out", "another", "rename"])):
        case "shape":
            tensors[key] = torch.full(draw(SHAPES), 0.5)
        case "dtype":
            tensors[key] = tensors[key].to(draw(st.sampled_from(DTYPES)))
        case "value":
            tensors[key] = torch.full(tensors[key].shape, draw(st.sampled_from(VALUES)))
        case "leave out" if len(tensors) > 1:
            del tensors[key]
        case "another":
            name = draw(st.sampled_from(sorted(NAMES)))
            tensors[f"{name}.{draw(st.sampled_from(LEAVES))}"] = tensors[key].clone()
        case _:
            name = next((name for name in NAMES if key.startswith(name)), key)
            tensors[f"{name}.{draw(st.sampled_from(LEAVES))}"] = tensors.pop(key)


METADATA = {
    "ss_network_dim": "2",
    "ss_network_alpha": "1.0",
    "ss_network_module": "networks.lora_flux",
    "ss_network_args": '{"conv_dim": "2"}',
    "ss_v2": "False",
    "ss_base_model_version": "flux1",
    "ss_tag_frequency": '{"a": {"b": 1}}',
    "ss_dataset_dirs": '{"1_cat": {"n_repeats": 1, "img_count": 2}}',
    "lora_adapter_metadata": '{"transformer.r": 2, "transformer.alpha": 4, "transformer.alpha_pattern": {}}',
}


@st.composite
def metadata(draw: st.DrawFn) -> dict[str, str]:
    """Return metadata of a file, any of which may be nonsense."""
    found = dict(draw(st.sets(st.sampled_from(sorted(METADATA.items())))))
    if found and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(found)))
        sound = json.loads(found[key]) if found[key][0] == "{" else found[key]
        found[key] = draw(damage.exchanged(sound).map(damage.json_text)).decode("utf-8", "replace")
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.flux(tmp_path_factory.mktemp("flux"), dtype=torch.float32).transformer


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sound LoRA of one layer."""
    path, name = tmp_path_factory.mktemp("other") / "other.safetensors", next(iter(NAMES))
    save_file({f"{name}.{leaf}": torch.ones(shape) for leaf, shape in forms(64, 64)["lora"].items()}, path)
    return path


@pytest.fixture(autouse=True)
def _without_words() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


MERGE, PAIR = "networks/flux_merge_lora --save_to {out}", "--models {path} {other} --ratios 0.5 1"
RESIZE = "networks/resize_lora --model {path} --save_to {out}"
CONVERT = "networks/convert_flux_lora --src_path {path} --dst_path {out}"
COMMANDS = {
    "merge into a model": f"{MERGE} --flux_model {{model}} --models {{path}} --ratios 0.5",
    "merge": f"{MERGE} {PAIR}",
    "merge, concat": f"{MERGE} {PAIR} --concat",
    "merge-svd": f"networks/svd_merge_lora {PAIR} --new_rank 2 --save_to {{out}}",
    "resize": f"{RESIZE} --new_rank 1",
    "resize, dynamic": f"{RESIZE} --new_rank 2 --dynamic_method sv_fro --dynamic_param 0.9",
    "convert": f"{CONVERT} --src sd-scripts --dst ai-toolkit",
    "convert back": f"{CONVERT} --src ai-toolkit --dst sd-scripts",
    "dylora": "networks/extract_lora_from_dylora --model {path} --save_to {out} --unit 1",
    "check": "networks/check_lora_weights {path} -s",
    "metadata": "tools/show_metadata --model {path}",
}


def family(model: Path) -> Family:
    texts = FluxOptions(
        clip_l=str(model.with_name("clip_l.safetensors")), t5xxl=str(model.with_name("t5xxl.safetensors"))
    )
    return family_for(Run("", "flux", [ModelConfig(pretrained_model_name_or_path=str(model)), texts]))


def generate(model: Path, path: Path, *, is_merged: bool) -> None:
    """Let an adapter act as it does when images are made."""
    bound = family(model)
    attachments = Attachments(bound, [AdapterFile(path, 0.5)], dtype=torch.float32, is_merged=is_merged)
    attachments.check()
    attachments(DENOISER, bound.load(DENOISER, torch.float32, CPU))


def train_further(model: Path, path: Path) -> None:
    bound = family(model)
    module = bound.load(DENOISER, torch.float32, CPU)
    network_from_file(path, list(bound.adapter_targets(DENOISER, module)))


def train_above(model: Path, path: Path) -> None:
    bound = family(model)
    BaseAdapters(bound, [str(path)], [0.5])(DENOISER, bound.load(DENOISER, torch.float32, CPU), CPU)


USES: dict[str, Callable[[Path, Path], None]] = {
    "generate": lambda model, path: generate(model, path, is_merged=False),
    "generate, merged": lambda model, path: generate(model, path, is_merged=True),
    "network_weights": train_further,
    "base_weights": train_above,
}


@settings(max_examples=3 * settings().max_examples)
@given(tensors=layers(), told=metadata(), use=st.sampled_from([*COMMANDS, *USES]))
def test_adapter_files(
    model: Path, other: Path, tensors: dict[str, Tensor], told: dict[str, str], use: str, tmp_path: Path
) -> None:
    path, out = tmp_path / "x.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, path, {key: text for key, text in told.items() if "\ud800" not in text})
    if use in USES:
        outcome(f"adapter: {use}", lambda: USES[use](model, path))
        return
    name, *argv = COMMANDS[use].format(model=model, path=path, other=other, out=out).split()
    outcome(f"adapter: {use}", lambda: _run(name, argv))


def _run(name: str, argv: list[str]) -> None:
    """Run a command, which says by its status that it refused its input."""
    status = script(name, argv)
    assert status in (0, 2)
    if status:
        raise UserError(name)


CONFIG = {
    "r": 2,
    "lora_alpha": 4,
    "alpha_pattern": {"to_q": 1},
    "rank_pattern": {"attn.to_k": 4},
    "use_rslora": True,
}


@given(content=damage.damaged_json(CONFIG))
def test_settings_of_folders(model: Path, content: bytes, tmp_path: Path) -> None:
    halves = forms(64, 64)["peft"].items()
    names = [f"base_model.model.transformer_blocks.0.attn.to_{key}" for key in "qkv"]
    tensors = {f"{name}.{leaf}": torch.ones(shape) for name in names for leaf, shape in halves}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes(content)
    outcome("adapter_config.json", lambda: generate(model, tmp_path, is_merged=True))
