"""The demonstration, piece by piece."""

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.config import blueprint
from sfumato.demo import base, data_sets
from sfumato.demo.data_sets import PLAIN, REMINDED
from sfumato.demo.muon import Muon, orthogonal
from sfumato.demo.photographs import KNOWN, SIZE_PX, SUBJECT, psnr_db
from sfumato.demo.sheet import TILE_PX, Row, Tile, contact_sheet

pytestmark = pytest.mark.whole_model

PACKAGE = Path(base.__file__).parent


def plain(colour: tuple[int, int, int]) -> Image.Image:
    return Image.new("RGB", (SIZE_PX, SIZE_PX), colour)


def test_base_fits_into_the_package() -> None:
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 12_000_000


def test_base_is_in_the_published_formats() -> None:
    expected = {
        base.TRANSFORMER: "double_blocks.1.img_attn.qkv.weight",
        base.CLIP_L: "text_model.encoder.layers.0.self_attn.q_proj.weight",
        base.T5XXL: "encoder.block.0.layer.0.SelfAttention.q.weight",
        base.AUTOENCODER: "decoder.up.2.block.0.conv1.weight",
    }
    for path, name in expected.items():
        with safe_open(path, "pt") as file:
            assert name in file.keys()  # noqa: SIM118 - a file is no mapping


def test_base_draws_what_it_knows_and_not_the_subject() -> None:
    made = base.generate([photograph.prompt for photograph in (KNOWN[0], KNOWN[4], SUBJECT)])
    likeness = [
        psnr_db(image, Image.open(photograph.path))
        for image, photograph in zip(made, (KNOWN[0], KNOWN[4], SUBJECT), strict=True)
    ]
    assert min(likeness[:2]) > 30
    assert likeness[2] < 14


def test_psnr_follows_its_formula() -> None:
    assert psnr_db(plain((0, 0, 0)), plain((0, 0, 0))) == math.inf
    assert psnr_db(plain((0, 0, 0)), plain((255, 255, 255))) == pytest.approx(0)
    assert psnr_db(plain((10, 10, 10)), plain((10, 10, 40))) == pytest.approx(10 * math.log10(255**2 / 300))


def test_contact_sheet_shows_every_image_enlarged() -> None:
    rows = [Row("one", [Tile(plain((255, 0, 0)), "a")]), Row("two", [Tile(plain((0, 0, 255)), "b")] * 3)]
    sheet = contact_sheet("title", rows)
    colours = {colour: count for count, colour in sheet.getcolors(1 << 20) or []}
    assert colours[(255, 0, 0)] == TILE_PX**2
    assert colours[(0, 0, 255)] == 3 * TILE_PX**2


def test_data_sets_balance_subject_and_regularisation(tmp_path: Path) -> None:
    files = data_sets.write(tmp_path / 'a folder with a "name"', [plain((9, 9, 9))] * len(KNOWN))
    plans = {
        name: blueprint.plans(
            Run(
                "s",
                "flux",
                [DatasetConfig(dataset_config=file), CaptionConfig(), ImageConfig(), LossConfig()],
            )
        )
        for name, file in files.items()
    }
    (alone,), (reminded,) = plans[PLAIN], plans[REMINDED]
    assert [(subset.is_reg, subset.num_repeats) for subset in alone.subsets] == [(False, 8)]
    assert [(subset.is_reg, subset.num_repeats) for subset in reminded.subsets] == [(False, 8), (True, 1)]


def test_newton_schulz_brings_singular_values_near_one() -> None:
    matrix = torch.randn(24, 7, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_muon_minimises_a_quadratic() -> None:
    rng = torch.Generator().manual_seed(0)
    goal, weight = torch.randn(6, 4, generator=rng), torch.nn.Parameter(torch.zeros(6, 4))
    unused = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([weight, unused], lr=0.2)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        optimizer.zero_grad()
        (weight - goal).pow(2).sum().backward()
        optimizer.step()
    assert (weight - goal).abs().max() < 0.05
    assert unused.abs().max() == 0
