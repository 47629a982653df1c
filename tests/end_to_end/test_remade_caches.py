"""Whatever changes, the tools that encode ahead make exactly those caches again that it concerns."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sfumato.cli.main import script
from tests import tiny
from tests.data.folders import image

LONG_AGO_NS = 1_600_000_000_000_000_000
LATENTS = {f"picture_0{number}_0064x0064_flux.npz" for number in range(2)}
TEXTS = {f"picture_0{number}_flux_te.npz" for number in range(2)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def cached(model: tiny.TinyFlux, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with caches of both kinds."""
    root = tmp_path_factory.mktemp("cached")
    for file in tiny.pictures(root / "1_cat", 2, (64, 64)):
        age(file)
        age(file.with_suffix(".txt"))
    start(model, root)
    return root


def age(file: Path, ns: int = LONG_AGO_NS) -> None:
    os.utime(file, ns=(ns, ns))


def start(model: tiny.TinyFlux, root: Path, *options: str) -> None:
    """Encode images and captions, as far as their caches are not valid."""
    data = ["--train_data_dir", str(root), "--caption_extension", ".txt", "--resolution", "64"]
    for tool in ("cache_latents", "cache_text_encoder_outputs"):
        assert script(f"tools/{tool}", [*model.arguments, "--flux", *data, *options]) == 0


def state(root: Path) -> dict[str, tuple[int, int]]:
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in root.glob("*/*.npz")}


def remade(model: tiny.TinyFlux, root: Path, *options: str) -> set[str]:
    before = state(root)
    start(model, root, *options)
    return {name for name, found in state(root).items() if found != before[name]}


@pytest.mark.parametrize(
    ("options", "concerned"),
    [
        ("", set()),
        ("--resolution 96", LATENTS),
        ("--flip_aug", LATENTS),
        ("--alpha_mask", LATENTS),
        ("--resize_interpolation nearest", LATENTS),
        ("--ae {other.ae}", LATENTS),
        ("--clip_l {other.clip_l}", TEXTS),
        ("--t5xxl {other.t5xxl}", TEXTS),
        ("--t5xxl_max_token_length 77", TEXTS),
        ("--apply_t5_attn_mask", TEXTS),
        ("--caption_prefix a", TEXTS),
        ("--mixed_precision bf16", set()),  # what was made in float32 serves
    ],
)
def test_a_changed_option_concerns_all_images_or_all_captions(
    options: str,
    concerned: set[str],
    model: tiny.TinyFlux,
    other: tiny.TinyFlux,
    cached: Path,
    tmp_path: Path,
) -> None:
    root = shutil.copytree(cached, tmp_path / "data")
    assert remade(model, root, *options.format(other=other).split()) == concerned


def test_a_changed_image_or_caption_concerns_its_own_cache_alone(
    model: tiny.TinyFlux, cached: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(cached, tmp_path / "data")
    image(root / "1_cat" / "picture_00.png", (64, 64))
    caption = root / "1_cat" / "picture_01.txt"
    caption.write_text(caption.read_text()[::-1])
    for file in (caption, root / "1_cat" / "picture_00.png"):
        age(file, LONG_AGO_NS + 1)
    assert remade(model, root) == {min(LATENTS), max(TEXTS)}
    assert remade(model, root) == set()
