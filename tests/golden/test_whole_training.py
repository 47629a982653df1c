"""Whole scripts train whole models as sd-scripts does: the same losses, and the same weights in the end.

Noise and timesteps are given and the autoencoder gives its mean, so that what is compared is the way of the
data, the text encoders, the loss and the optimizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.cli.main import script
from sfumato.data.images.resizing import resize
from sfumato.models.components.text_encoders import bare
from sfumato.models.components.unet import unet_names
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sd.layouts import TEXT
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.families.sdxl.layout import TEXT_1, TEXT_2
from sfumato.models.interface.family import DENOISER
from tests import vocabularies
from tests.golden.derived import (
    arrays,
    cases,
    error,
    quantities,
    recorded_parts,
)
from tests.golden.whole_models import NAME, give, image_of, write_base
from tests.runs import figures

OFTEN = ("db_te", "xl_te", "ti_xl")
WHOLE = ("train_db", "fine_tune", "sdxl_train")
WORDS = ("train_textual_inversion", "sdxl_train_textual_inversion")


def cases_of(scripts: Sequence[str]) -> list[Any]:
    return [
        pytest.param(case, id=case["id"], marks=() if case["id"] in OFTEN else pytest.mark.slow)
        for case in cases(NAME)
        if case["script"] in scripts
    ]


PARTS = {"unet": DENOISER, "te": TEXT, "te1": TEXT_1, "te2": TEXT_2}
STRETCHED = (128, 128)
"""What sd-scripts makes of each image of a data set of metadata that says so, whatever the image's shape."""
TOLERANCE = 1e-3
"""Of weights, relative to a tensor's largest; AdamW makes a whole step of a gradient that is nearly 0."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The two models as folders in diffusers' layout, which tell how many heads there are."""
    place = tmp_path_factory.mktemp("bases")
    vocabularies.write_clip(place / "clip")
    return {kind: write_base(place / kind, kind, place / "clip") for kind in ("sd", "sdxl")}


@pytest.mark.whole_model
@pytest.mark.parametrize("case", cases_of(WHOLE))
def test_a_script_run_whole_has_the_recorded_losses_and_weights(
    case: dict[str, Any], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = run_whole(case, bases, tmp_path, monkeypatch)
    assert _far_off(case, kind, tmp_path / "out" / "o.safetensors") == []


@pytest.mark.whole_model
@pytest.mark.parametrize("case", cases_of(WORDS))
def test_a_word_has_the_recorded_losses_and_vectors(
    case: dict[str, Any], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_whole(case, bases, tmp_path, monkeypatch)
    saved, numbers = load_file(tmp_path / "out" / "o.safetensors"), arrays(NAME)
    recorded = {name.rpartition("/")[2]: name for name in numbers if name.startswith(f"{case['id']}/file/")}
    assert saved.keys() == recorded.keys()
    for key, name in recorded.items():
        assert error(saved[key], numbers[name]) < TOLERANCE, key


def run_whole(
    case: dict[str, Any], bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """Run a case's script with the noise that is given; compare losses, return the kind of the model."""
    give(case, monkeypatch)
    kind = "sdxl" if case["script"].startswith("sdxl") else "sd"
    _write_images(tmp_path, case["picture"], has_metadata="--in_json" in case["args"])
    assert script(case["script"], _arguments(case, tmp_path, bases[kind])) == 0
    losses = [line["loss"] for line in figures(tmp_path / "out" / "o.metrics.jsonl")]
    # Images that are resized differ by one level of brightness here and there, and steps add that up.
    assert losses[0] == pytest.approx(case["loss"][0], rel=1e-4)
    assert losses == pytest.approx(case["loss"], rel=1e-3)
    return kind


def _far_off(case: dict[str, Any], kind: str, saved: Path) -> list[str]:
    """Return the recorded tensors that were trained otherwise."""
    family = SdxlFamily(saved) if kind == "sdxl" else SdFamily(saved)
    numbers, rate = arrays(NAME), float(case["args"][case["args"].index("--learning_rate") + 1])
    states: dict[str, dict[str, Tensor]] = {}
    far = []
    for name in quantities(numbers, case["id"]):
        part, _, tensor = name.partition("/")
        if part not in PARTS:
            continue
        if part not in states:
            model = family.load(PARTS[part], torch.float32, torch.device("cpu"))
            states[part] = _named(model, is_published=kind == "sdxl" and part == "unet")
        for ours, theirs in recorded_parts(states[part][bare(tensor)], numbers, f"{case['id']}/{name}"):
            gap = (ours.double() - theirs.double()).abs().flatten()
            is_far = gap > TOLERANCE * theirs.abs().max()
            if is_far.sum() > max(1, len(gap) / 100) or gap.max() > 2 * rate * len(case["loss"]):
                far.append(f"{name}: {gap.max():.2e}, {int(is_far.sum())} of {len(gap)}")
    return far


def _named(model: nn.Module, *, is_published: bool) -> dict[str, Tensor]:
    state = {bare(name): tensor for name, tensor in model.state_dict().items()}
    names = unet_names.published_names(state) if is_published else {name: name for name in state}
    return {names[name]: tensor for name, tensor in state.items()}


def _arguments(case: dict[str, Any], folder: Path, base: Path) -> list[str]:
    texts = [text.replace("<dir>", str(folder)) for text in case["args"]]
    texts[texts.index("x.safetensors")] = str(base)
    return texts


def _write_images(folder: Path, picture: dict[str, Any], *, has_metadata: bool) -> None:
    image = image_of(picture["name"], picture["size"])
    if has_metadata:
        image = resize(image, STRETCHED)
    place = folder / "img" if has_metadata else folder / "img" / "1_x"
    place.mkdir(parents=True)
    image.save(place / "a.png")
    (place / "a.txt").write_text(picture["caption"], encoding="utf-8")
    entry = {"caption": picture["caption"], "train_resolution": STRETCHED}
    (folder / "meta.json").write_text(json.dumps({str(place / "a.png"): entry}), encoding="utf-8")
