"""Adapter files on models whose parts come and go."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.parts import Parts
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments, parse_adapter
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests.sampling.fake import WIDTH, FakeFamily

pytestmark = pytest.mark.whole_model

REQUEST = Request("a cat", width=32, height=32, steps=3, seed=3)
SHAPES = {"lora_unet_mix": (4, 4), "lora_unet_read": (2 * WIDTH, 4), "lora_te1_all": (WIDTH, WIDTH)}


@pytest.fixture(autouse=True)
def _messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)


def lora(path: Path, *names: str, seed: int = 0, alpha: float | None = 1.0) -> Path:
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names or SHAPES:
        inputs, outputs = SHAPES.get(name, (4, 4))
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, inputs, generator=rng)
        tensors[f"{name}.lora_up.weight"] = torch.randn(outputs, 2, generator=rng) / 4
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def draw(
    files: Sequence[AdapterFile],
    *,
    is_merged: bool = False,
    offload: bool = False,
    strengths: Sequence[float] | None = None,
) -> np.ndarray:
    family = FakeFamily()
    attachments = Attachments(family, files, dtype=torch.float32, is_merged=is_merged)
    parts = Parts(family, torch.device("cpu"))
    pipeline = Pipeline(family, parts, dtype=torch.float32, offload=offload, on_load=attachments)
    attachments.set_strengths(strengths)
    return np.asarray(pipeline(REQUEST)).astype(int)


def test_strength_zero_equals_no_adapter(tmp_path: Path) -> None:
    file = AdapterFile(lora(tmp_path / "a.safetensors"), 0.0)
    assert np.array_equal(draw([file]), draw([]))
    assert np.array_equal(draw([file], is_merged=True), draw([]))


@pytest.mark.parametrize("name", SHAPES)
def test_each_adapted_layer_changes_the_image(tmp_path: Path, name: str) -> None:
    file = AdapterFile(lora(tmp_path / "a.safetensors", name))
    assert np.abs(draw([file]) - draw([])).max() > 2


def test_merged_equals_live(tmp_path: Path) -> None:
    files = [
        AdapterFile(lora(tmp_path / "a.safetensors"), 0.7),
        AdapterFile(lora(tmp_path / "b.safetensors", seed=1, alpha=None), -0.5),
    ]
    live = draw(files)
    assert np.abs(live - draw(files, is_merged=True)).max() <= 1
    assert np.abs(live - draw(files[:1])).max() > 2
    assert np.abs(live - draw(files[1:])).max() > 2


@pytest.mark.parametrize("is_merged", [False, True])
def test_parts_that_are_loaded_again_are_adapted_again(tmp_path: Path, is_merged: bool) -> None:
    files = [AdapterFile(lora(tmp_path / "a.safetensors"))]
    assert np.array_equal(draw(files, is_merged=is_merged, offload=True), draw(files, is_merged=is_merged))


def test_strengths_can_change_between_images(tmp_path: Path) -> None:
    family = FakeFamily()
    path = lora(tmp_path / "a.safetensors")
    attachments = Attachments(family, [AdapterFile(path)], dtype=torch.float32)
    pipeline = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32, on_load=attachments)
    images = []
    for strengths in (None, (0.0,), (0.5,), None):
        attachments.set_strengths(strengths)
        images.append(pipeline(REQUEST).tobytes())
    assert images[0] == images[3]
    assert len(set(images)) == 3
    assert np.array_equal(draw([AdapterFile(path, 0.5)]).ravel(), np.frombuffer(images[2], np.uint8))
    assert attachments.names() == ["a.safetensors;1"]


def test_strengths_must_match_the_adapters(tmp_path: Path) -> None:
    files = [AdapterFile(lora(tmp_path / "a.safetensors"))]
    with pytest.raises(UserError, match="2 adapter strengths for 1 adapters"):
        draw(files, strengths=(1.0, 0.5))
    with pytest.raises(UserError, match="merged adapters keep their strength"):
        draw(files, is_merged=True, strengths=(0.5,))


def test_adapters_may_be_stored_in_16_bits(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    family = FakeFamily()
    attachments = Attachments(family, [AdapterFile(path)], dtype=torch.bfloat16)
    parts = Parts(family, torch.device("cpu"), dict.fromkeys([DENOISER, "first", "second"], torch.bfloat16))
    made = Pipeline(family, parts, dtype=torch.bfloat16, on_load=attachments)(REQUEST)
    difference = np.abs(np.asarray(made).astype(int) - draw([AdapterFile(path)]))
    assert 0 < difference.mean() < 5


def test_layers_without_a_place_are_refused_or_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = lora(tmp_path / "a.safetensors", "lora_unet_mix", "lora_unet_other")
    with pytest.raises(UserError, match=r"1 of 2 layers have no place here \(lora_unet_other\); use another"):
        Attachments(FakeFamily(), [AdapterFile(path)], dtype=torch.float32).check()
    Attachments(FakeFamily(), [AdapterFile(path, 1.0, allow_partial=True)], dtype=torch.float32).check()
    assert "1 layer fits nothing here (lora_unet_other ...)" in caplog.text


def test_an_adapter_of_another_model_is_refused_before_a_weight_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [AdapterFile(lora(tmp_path / "own.safetensors", "lora_unet_mix"))]
    files.append(AdapterFile(lora(tmp_path / "a.safetensors", "lora_unet_down_blocks_0")))
    devices, load = [], FakeFamily.load

    def recorded(self: FakeFamily, part: str, dtype: torch.dtype, device: torch.device) -> torch.nn.Module:
        devices.append(device.type)
        return load(self, part, dtype, device)

    monkeypatch.setattr(FakeFamily, "load", recorded)
    attachments = Attachments(FakeFamily(), files, dtype=torch.float32)
    with pytest.raises(UserError, match=r"fits no layer of this model: it holds lora_unet_down_blocks_0"):
        attachments.check()
    assert devices == ["meta"] * 3


def test_an_adapter_of_a_model_of_another_width_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    names = ("lora_down.weight", "lora_up.weight")
    save_file(
        {f"lora_unet_mix.{n}": torch.zeros(s) for n, s in zip(names, [(2, 5), (4, 2)], strict=True)}, path
    )
    with pytest.raises(
        UserError, match=r"lora_unet_mix\.lora_down\.weight is 2x5, this model and rank need 2x4"
    ):
        draw([AdapterFile(path)])


def test_files_that_hold_no_lora_are_refused_before_a_model_loads(tmp_path: Path) -> None:
    save_file({"model.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "text.safetensors").write_text("not tensors")
    family = FakeFamily()
    for name in ("model", "text"):
        with pytest.raises(UserError, match=name):
            Attachments(family, [AdapterFile(tmp_path / f"{name}.safetensors")], dtype=torch.float32)


def test_a_file_and_its_strength_are_read_from_one_text(tmp_path: Path) -> None:
    path = lora(tmp_path / "a.safetensors")
    assert parse_adapter(str(path)) == AdapterFile(path, 1.0)
    assert parse_adapter(f"{path};") == AdapterFile(path, 1.0)
    assert parse_adapter(f"{path};-0.25") == AdapterFile(path, -0.25)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("none.safetensors;1", "there is no file"), ("x;strong", "'strong' is no strength")],
)
def test_a_bad_adapter_text_is_one_clear_line(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse_adapter(text)
