"""Where cache files cannot be written, a run that needs them does not begin."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.run import Run
from sfumato.data.batches import dataset
from sfumato.errors import UserError
from sfumato.training.run import caches
from sfumato.training.run.caches import cache_captions, captions_at_once, check_places
from tests.caching.fake import family
from tests.data.folders import folder, plan, subset

FAMILY: Any = SimpleNamespace(caches=SimpleNamespace(texts="_te.npz"))


def check(*images: Path) -> None:
    table = SimpleNamespace(images=SimpleNamespace(paths=[str(path) for path in images]))
    training_set: Any = SimpleNamespace(sets=[table], validation=None)
    check_places(training_set, FAMILY, "move it", latents=False, texts=True)


def test_the_longest_name_of_each_folder_is_tried_and_nothing_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    short, long = tmp_path / "a" / "cat.png", tmp_path / "b" / f"{'c' * 250}.png"
    check(short, tmp_path / "b" / "cat.png")
    with pytest.raises(
        UserError, match=r"b/cccccc.*_te.npz .* cannot be written: File name too long; move it"
    ):
        check(short, long, tmp_path / "b" / "cat.png")
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a", "b"]


def test_a_folder_that_takes_no_cache_files_is_refused_unless_it_has_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, remedy: str) -> None:
        raise UserError(f"{path} cannot be written: Read-only file system; {remedy}")

    monkeypatch.setattr(caches, "try_file", refuse)
    images = [tmp_path / "cat.png", tmp_path / "horse.png"]
    (tmp_path / "horse_te.npz").touch()
    with pytest.raises(UserError, match="Read-only file system; move it"):
        check(*images)
    (tmp_path / "cat_te.npz").touch()
    check(*images)


@pytest.mark.parametrize(("asked", "sizes"), [(2, [2, 1]), (None, [3])])
def test_captions_are_encoded_in_batches_of_the_size_that_is_asked_for(
    asked: int | None, sizes: list[int], tmp_path: Path
) -> None:
    config = CachingConfig(cache_text_encoder_outputs=True, text_encoder_batch_size=asked)
    run = Run("flux_train_network", "flux", [config, DatasetConfig(train_batch_size=4)])
    fake, as_family, parts = family(tmp_path)
    found, encode = [], fake.encode_text

    def counting(encoders: Any, tokens: Any) -> Any:
        found.append(len(tokens["t5"]))
        return encode(encoders, tokens)

    fake.encode_text = counting  # type: ignore[method-assign]
    images = dataset.read([plan(subset(folder(tmp_path / "cats", [(64, 64)] * 3)))], seed=1)
    alone: Any = SimpleNamespace(rank=0, world=1, wait=lambda: None)
    cache_captions(config, images, as_family, parts, alone, ["clip", "t5"], captions_at_once(run))
    assert found == sizes
