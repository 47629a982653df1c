"""A user's own class makes the batches: their order and all that is random follow from seed and epoch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.data.batches.loader import Loader
from sfumato.data.custom import user_set
from sfumato.data.custom.returned_batches import Geometry
from sfumato.data.custom.user_set import UserSet
from sfumato.errors import UserError

NOISE = """
import random
import numpy as np
import torch

class Noise:
    epoch = None

    def __init__(self, resolution, batch_size, seed):
        self.width, self.height = resolution
        self.batch_size, self.seed = batch_size, seed

    def set_current_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return 5

    def __getitem__(self, index):
        images = torch.rand(self.batch_size, 3, self.height, self.width)
        images[:, 0] *= random.random()
        images[:, 1] *= np.random.random()
        return {"images": images, "captions": [f"{index} in {self.epoch}"] * self.batch_size}

class Foreign:  # as a class for sd-scripts is made
    num_train_images = 12

    def __init__(self, tokenizer, max_token_length, resolution, debug_dataset=True):
        self.given = tokenizer, max_token_length, resolution, debug_dataset

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return {"images": torch.zeros(3, 3, 16, 16), "captions": ["x"] * 3}

class Anything(Foreign):
    def __init__(self, **given):
        self.given = given

class Odd(Foreign):
    def __init__(self, folder):
        self.folder = folder

class Empty(Foreign):
    def __init__(self):
        pass

    def __len__(self):
        return 0

class Endless:
    def __getitem__(self, index):
        return {}

function = len
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(user_set.sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(NOISE)
    return tmp_path


def read(name: str = "mine.Noise", seed: int = 1, **options: object) -> UserSet:
    config = DatasetConfig(dataset_class=name, train_batch_size=2)
    run = Run("script", "family", [config, ImageConfig(resolution="32,16"), CaptionConfig(**options)])  # type: ignore[arg-type]
    return user_set.read(run, Geometry(4, 8, 16), seed)


def captions(data: UserSet, epoch: int) -> list[str]:
    return [data[plan].captions[0] for plan in data.batches(epoch)]


@pytest.mark.usefixtures("folder")
class TestASet:
    def test_an_epoch_has_every_batch_once_in_an_order_of_its_own(self) -> None:
        data = read()
        first, second = captions(data, 1), captions(data, 2)
        assert sorted(first) == [f"{index} in 1" for index in range(5)]
        assert sorted(second) == [f"{index} in 2" for index in range(5)]
        assert [text[0] for text in first] != [text[0] for text in second]
        assert captions(read(), 1) == first != captions(read(seed=2), 1)
        assert (data.num_batches, data.num_train_images, data.num_reg_images) == (5, 10, 0)

    def test_what_the_class_draws_follows_from_seed_epoch_and_batch_alone(self) -> None:
        plan = read().batches(2)[3]
        torch.manual_seed(0)
        first = read()[plan].pixels
        state = torch.get_rng_state()
        again = read()[plan].pixels
        assert first is not None
        assert again is not None
        assert torch.equal(first, again)
        assert torch.equal(state, torch.get_rng_state()), "nothing is taken from the run's own generator"
        other = read(seed=2)[plan].pixels
        assert other is not None
        assert (first != other).any(dim=(0, 2, 3)).all(), "all three generators differ"

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_workers_make_the_same_batches(self, num_workers: int) -> None:
        data = read()
        plans = data.batches(1)
        loaded = list(Loader(data, num_workers=num_workers)(plans))
        for plan, batch in zip(plans, loaded, strict=True):
            expected = data[plan]
            assert batch.captions == expected.captions
            assert batch.pixels is not None
            assert expected.pixels is not None
            assert torch.equal(batch.pixels, expected.pixels)

    def test_a_class_is_given_what_its_constructor_names(self) -> None:
        made = read("mine.Foreign", max_token_length=150)
        assert made.batches_made.given == (None, 150, (32, 16), False)
        assert made.num_train_images == 12
        assert read("mine.Anything").batches_made.given == {
            "tokenizer": None,
            "max_token_length": None,
            "resolution": (32, 16),
            "debug_dataset": False,
            "batch_size": 2,
            "seed": 1,
        }

    @pytest.mark.parametrize(
        ("name", "complaint"),
        [
            ("Noise", r"^--dataset_class is Noise; write it as package.module.Class$"),
            ("yours.Noise", r"^--dataset_class yours.Noise: there is no module yours in .* or where Python"),
            ("mine.Nose", r"^--dataset_class is mine.Nose; mine \(.*mine.py\) has no such class$"),
            ("mine.function", r"has no such class$"),
            (
                "mine.Odd",
                r"^--dataset_class mine.Odd wants the argument folder, which is not known here; give",
            ),
            ("mine.Empty", r"^--dataset_class mine.Empty is empty: its __len__ is 0; it counts batches$"),
            ("mine.Endless", r"^--dataset_class mine.Endless has no __len__; see docs/datasets.md"),
        ],
    )
    def test_a_class_that_will_not_do_is_named(self, name: str, complaint: str) -> None:
        with pytest.raises(UserError, match=complaint):
            read(name)


def test_a_module_that_cannot_be_imported_says_why(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What sd-scripts calls `library` may be there by another test, which loaded a drop-in.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if Path(place).name != "sd-scripts"])
    for name in [name for name in sys.modules if name.partition(".")[0] == "library"]:
        monkeypatch.delitem(sys.modules, name)
    (folder / "for_others.py").write_text("from library.train_util import MinimalDataset\n")
    (folder / "misspelt.py").write_text("class :\n")
    (folder / "wishful.py").write_text("from json import nothing\n")
    with pytest.raises(
        UserError, match=r"imports sd-scripts' own modules \(library\); it needs no base class"
    ):
        read("for_others.Data")
    with pytest.raises(UserError, match=r"misspelt.Data: misspelt cannot be imported: invalid syntax"):
        read("misspelt.Data")
    with pytest.raises(UserError, match=r"wishful.Data: wishful cannot be imported: cannot import name"):
        read("wishful.Data")


def test_options_for_folders_are_named_unless_the_class_takes_them() -> None:
    sections = [
        DatasetConfig(dataset_class="a.B", train_batch_size=2, dataset_repeats=3),
        ImageConfig(resolution="64", flip_aug=True),
        CaptionConfig(max_token_length=150, shuffle_caption=True),
    ]
    run = Run("script", "family", sections)
    (line,) = user_set.options_without_effect(run, frozenset({"resolution", "batch_size"}))
    assert line.startswith("--shuffle_caption and --flip_aug and --dataset_repeats have no effect with")
    (line,) = user_set.options_without_effect(run, frozenset())
    assert "--resolution" in line
    assert "--train_batch_size" in line
    plain = Run("script", "family", [CaptionConfig(), DatasetConfig(), ImageConfig()])
    assert user_set.options_without_effect(plain, frozenset()) == []
