"""Model files with tensors of any shape, and folders of diffusers with any settings."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.checkpoints.header import TensorInfo, encode_header, read_header
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.registry.families import family_for
from sfumato.models.registry.whole_models import open_rewritable
from tests import tiny
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome

META = torch.device("meta")
FEWER = settings(max_examples=settings().max_examples // 4)
ODD_SHAPES = [
    (),
    (1,),
    (0,),
    (5, 0),
    (4,),
    (4, 4),
    (64, 64, 1),
    (4, 4, 3, 3),
    (1, 1, 1, 1, 1),
    (7, 64),
    (1 << 20, 1),
]


@pytest.fixture(autouse=True)
def _without_words() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(before)


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp("sd")).path


@pytest.fixture(scope="module")
def diffusers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sd(tmp_path_factory.mktemp("diffusers"), as_folder=True).path


def write_damaged(source: Path, target: Path, data: st.DataObject) -> None:
    """Write a file with other shapes than a sound one has; the numbers are all 0 and take no room."""
    tensors = dict(read_header(source).tensors)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        match data.draw(st.sampled_from(["shape", "shape", "side", "leave out", "rename", "dtype"])):
            case "shape":
                tensors[name] = TensorInfo(tensors[name].dtype, data.draw(st.sampled_from(ODD_SHAPES)))
            case "side" if tensors[name].shape:
                shape = (data.draw(st.sampled_from([0, 1, 3, 65, 4096])), *tensors[name].shape[1:])
                tensors[name] = TensorInfo(tensors[name].dtype, shape)
            case "rename":
                tensors[data.draw(st.sampled_from([f"x.{name}", name.rpartition(".")[0], "x"]))] = (
                    tensors.pop(name)
                )
            case "dtype":
                dtype = data.draw(
                    st.sampled_from([torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
                )
                tensors[name] = TensorInfo(dtype, tensors[name].shape)
            case _:
                del tensors[name]
    header = encode_header(tensors, {})
    target.write_bytes(header)
    os.truncate(target, len(header) + sum(info.size_bytes for info in tensors.values()))


@FEWER
@given(data=st.data())
@pytest.mark.parametrize("part", ["transformer", "clip_l", "t5xxl", "ae"])
def test_parts_of_models(part: str, flux: tiny.TinyFlux, data: st.DataObject, tmp_path: Path) -> None:
    files = {name: str(getattr(flux, name)) for name in ("transformer", "clip_l", "t5xxl", "ae")}
    write_damaged(Path(files[part]), tmp_path / "x.safetensors", data)
    files[part] = str(tmp_path / "x.safetensors")
    options = FluxOptions(clip_l=files["clip_l"], t5xxl=files["t5xxl"], ae=files["ae"])
    name = {"transformer": DENOISER, "ae": VAE}.get(part, part)

    def load() -> None:
        family = family_for(
            Run("", "flux", [ModelConfig(pretrained_model_name_or_path=files["transformer"]), options])
        )
        family.check([DENOISER, VAE, "clip_l", "t5xxl"])
        family.load(name, torch.bfloat16, META)

    outcome(f"model file, {part}", load)


def load_whole(path: Path) -> None:
    """Open a model as tools do, and load its parts."""
    family = open_rewritable(path, "MODEL")
    for part in (*family.text_outputs, VAE, DENOISER):
        family.load(part, torch.float32, META)


@FEWER
@given(data=st.data())
def test_whole_models(sd: Path, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write_damaged(sd, path, data)
    outcome("model file, whole", lambda: load_whole(path))


@FEWER
@given(data=st.data())
def test_settings_in_folders(diffusers: Path, data: st.DataObject) -> None:
    file = data.draw(
        st.sampled_from([diffusers / "model_index.json", *sorted(diffusers.glob("**/*config.json"))])
    )
    sound = file.read_bytes()
    try:
        file.write_bytes(data.draw(damage.damaged_json(json.loads(sound))))
        outcome(f"folder, {file.name}", lambda: load_whole(diffusers))
    finally:
        file.write_bytes(sound)
