"""Whole scripts train control networks as sd-scripts does: the same losses and, in the end, weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.cli.main import script
from sfumato.data.batches import render
from sfumato.data.batches.render import ImageView
from sfumato.data.images import images
from sfumato.data.images.resizing import resize
from sfumato.models.components.controlnet.controlnet_names import ADDED
from sfumato.models.components.unet import unet
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from sfumato.training.trainables.controlnet import ControlNetTraining
from tests import vocabularies
from tests.golden.derived import arrays, cases, quantities, recorded_parts, weight
from tests.golden.unet_models import predict_in_place
from tests.golden.whole_models import NAME, give, image_of, write_base
from tests.runs import figures

SEED = {case["id"]: case for case in cases(NAME)}
SLOW = pytest.mark.slow
SEED_CASES = [pytest.param("xl_cn", marks=SLOW), pytest.param("xl_cn_te", marks=SLOW)]
STD = {"sd": 0.06, "sdxl": 0.05}
CPU = torch.device("cpu")

pytestmark = pytest.mark.whole_model


def base_of(kind: str, folder: Path) -> Path:
    vocabularies.write_clip(folder / "clip")
    return write_base(folder / kind, kind, folder / "clip")


def first_controlnet(kind: str, base: Path, path: Path) -> Path:
    """Write the ControlNet that a recorded run begins with."""
    family = SdxlFamily(base) if kind == "sdxl" else SdFamily(base)
    state = family.load_control(None, torch.float32, CPU).state_dict()
    own = {name: weight(f"cn:{name}", t.shape, STD[kind]) for name, t in state.items() if ADDED in name}
    save_file(state | own, path)
    return path


def stretched(path: str, view: ImageView) -> Tensor:
    """Return a control image as sd-scripts has it without buckets: stretched, where its image is cut.

    Ours are cut as their images are, so that both show the same.
    """
    return images.to_tensor(resize(images.decode(path), view.framing.size))


def shared(training: ControlNetTraining, step: object) -> None:
    """Let the U-Net have the ControlNet's weights: in sd-scripts both lie in the same memory.

    So its own first half is trained along, where nothing is converted. Ours stays as it is.
    """
    state = {name: t.detach().clone() for name, t in training.net.state_dict().items() if ADDED not in name}
    training.denoising.parts[DENOISER].load_state_dict(state, strict=False)


def run(
    case: dict[str, Any], base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> list[float]:
    """Run a script as it was recorded; return its losses."""
    give(case, monkeypatch)
    monkeypatch.setattr(render, "render_control", stretched)
    for place, name in (("img", case["picture"]["name"]), ("cond", f"{case['id']}.cond")):
        (folder / place / "1_x" if place == "img" else folder / place).mkdir(parents=True)
        file = folder / place / ("1_x/a.png" if place == "img" else "a.png")
        image_of(name, case["picture"]["size"]).save(file)
    (folder / "img" / "1_x" / "a.txt").write_text(case["picture"]["caption"], encoding="utf-8")
    texts = [text.replace("<dir>", str(folder)) for text in case["args"]]
    texts[texts.index("x.safetensors")] = str(base)
    assert script(case["script"], [*texts, *options]) == 0
    return [line["loss"] for line in figures(folder / "out" / "o.metrics.jsonl")]


def assert_trained(
    case: dict[str, Any], numbers: dict[str, Tensor], stem: str, saved: Path, rates: Callable[[str], float]
) -> None:
    """Compare saved weights with the recorded; AdamW makes a whole step of a gradient that is nearly 0."""
    state = load_file(saved)
    assert len(state) == case["files"]["o.safetensors"]["keys"]
    for name in quantities(numbers, stem):
        for ours, theirs in recorded_parts(state[name], numbers, f"{stem}/{name}"):
            gap = (ours.double() - theirs.double()).abs().flatten()
            assert (gap > 1e-3 * theirs.abs().max()).sum() <= max(1, len(gap) / 100), name
            assert gap.max() <= 2 * rates(name) * len(case["loss"]), name


@pytest.mark.parametrize("name", SEED_CASES)
def test_an_sdxl_controlnet_is_trained_as_recorded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = SEED[name]
    monkeypatch.setattr(ControlNetTraining, "step_begins", shared)
    base = base_of("sdxl", tmp_path)
    net = first_controlnet("sdxl", base, tmp_path / "net.safetensors")
    losses = run(case, base, tmp_path, monkeypatch, "--controlnet_model_path", str(net))
    assert losses[0] == pytest.approx(case["loss"][0], rel=1e-4)
    assert losses == pytest.approx(case["loss"], rel=1e-3)
    saved = tmp_path / "out" / "o.safetensors"
    assert_trained(
        case, arrays(NAME), f"{name}/file", saved, lambda key: 2e-3 if key.startswith(ADDED) else 1e-3
    )


@pytest.mark.slow
def test_a_stable_diffusion_controlnet_is_trained_as_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (case,) = cases("k_train_e2e_head")
    predict = unet.predict

    def recorded(model: nn.Module, *given: Any) -> Tensor:
        return predict_in_place(predict, model, *given)

    monkeypatch.setattr(unet, "predict", recorded)
    base = base_of("sd", tmp_path)
    net = first_controlnet("sd", base, tmp_path / "net.safetensors")
    losses = run(case, base, tmp_path, monkeypatch, "--controlnet_model_name_or_path", str(net))
    assert losses[0] == pytest.approx(case["right_loss"][0], rel=1e-4)
    assert losses == pytest.approx(case["right_loss"], rel=1e-3)
    saved, numbers = tmp_path / "out" / "o.safetensors", arrays("k_train_e2e_head")
    assert_trained(case, numbers, "sd_cn/right/file", saved, lambda _: 1e-3)
