"""Regularisation images made for data sets, with a family that can be checked by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.cli import generate
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.run import Run
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config.plan import SubsetPlan
from sfumato.errors import UserError
from sfumato.sampling import session
from sfumato.sampling.output.image_files import read_request
from sfumato.sampling.regularisation import class_prompt
from tests.data.folders import folder
from tests.sampling.fake import FakeFamily
from tests.sampling.test_session import FakeOptions

DATA = """
[general]
caption_extension = ".txt"
caption_prefix = "a photo of a"
[[datasets]]
resolution = [64, 32]
  [[datasets.subsets]]
  image_dir = "trained"
  num_repeats = 2
  [[datasets.subsets]]
  image_dir = "cats"
  class_tokens = "cat"
  is_reg = true
"""


@pytest.fixture(autouse=True)
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFamily:
    """Return the family of the runs, whose working folder holds a data set."""
    family = FakeFamily()
    monkeypatch.setattr(session, "family_for", lambda run: family)
    monkeypatch.setattr(session, "default_device", lambda: torch.device("cpu"))
    monkeypatch.chdir(tmp_path)
    folder(Path("trained"), [(64, 32)] * 2)
    Path("data.toml").write_text(DATA, encoding="utf-8")
    return family


def make(*named: str, **settings: object) -> None:
    base: dict[str, object] = {"width": 64, "height": 64, "dtype": "fp32", "for_regularisation": named}
    generate.main(Run("generate", "fake", [GenerationConfig(**base | settings), FakeOptions()]))  # type: ignore[arg-type]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_as_many_images_are_made_as_are_missing(family: FakeFamily) -> None:
    make("data.toml", seed=40)
    made = sorted(Path("cats").iterdir())
    assert [path.name for path in made if path.suffix == ".png"] == [
        f"regularisation-00000{number}.png" for number in (1, 2, 3, 4)
    ]
    requests = [read_request(path) for path in made if path.suffix == ".png"]
    assert {(r.prompt, r.width, r.height) for r in requests} == {("a photo of a cat", 64, 32)}
    assert [r.seed for r in requests] == [41, 42, 43, 44]
    assert family.encoded == [("first", 1), ("second", 1)]


def test_a_second_call_goes_on_where_the_first_stopped() -> None:
    make("data.toml")
    third, fourth = Path("cats/regularisation-000003.png"), Path("cats/regularisation-000004.png")
    before = pixels(third), pixels(fourth)
    kept = Path("cats/regularisation-000002.png").stat().st_mtime_ns
    third.unlink()
    fourth.unlink()
    make("data.toml")
    assert (pixels(third), pixels(fourth)) == before
    assert Path("cats/regularisation-000002.png").stat().st_mtime_ns == kept
    make("data.toml")
    assert len(list(Path("cats").glob("*.png"))) == 4


def test_images_of_ones_own_count_and_are_left_alone() -> None:
    folder(Path("cats"), [(64, 32)] * 3)
    make("data.toml")
    assert sorted(path.name for path in Path("cats").glob("*.png")) == [
        *("im0.png", "im1.png", "im2.png", "regularisation-000001.png")
    ]


def test_a_folder_of_two_data_sets_is_filled_for_the_larger_size_first() -> None:
    small = DATA.partition("[[datasets]]")[2].replace("[64, 32]", "32").replace("= 2", "= 3")
    Path("data.toml").write_text(f"{DATA}[[datasets]]{small}", encoding="utf-8")
    make("data.toml")
    requests = [read_request(path) for path in sorted(Path("cats").glob("*.png"))]
    assert [(r.width, r.height, r.seed) for r in requests] == [
        *((64, 32, seed) for seed in (1, 2, 3, 4)),
        *((32, 32, seed) for seed in (5, 6)),
    ]


def test_folders_take_class_and_repeats_from_their_names() -> None:
    folder(Path("train/3_sks cat"), [(64, 64)])
    Path("reg/2_cat").mkdir(parents=True)
    make("train", "reg", width=32, height=32)
    first, second = sorted(Path("reg/2_cat").glob("*.png"))
    assert read_request(first).prompt == read_request(second).prompt == "cat"
    assert (read_request(first).width, read_request(first).height) == (32, 32)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("is_reg = true", "", "data.toml describes no regularisation images; add"),
        ('class_tokens = "cat"', "", "cats has no class_tokens"),
        ('"cats"', '"data.toml/cats"', "choose another image_dir"),
    ],
)
def test_what_will_not_do_is_said_before_a_model_is_loaded(
    old: str, new: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeFamily, "load", lambda *_: pytest.fail("loaded a model"))
    Path("data.toml").write_text(DATA.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=complaint):
        make("data.toml")


@pytest.mark.parametrize("named", [("photos",), ("a.toml", "b", "c")], ids=len)
def test_what_names_no_data_set_is_refused(named: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"--for_regularisation is .*; name a data set file"):
        GenerationConfig(for_regularisation=named)


def test_the_prompt_is_the_caption_without_chance() -> None:
    settings = CaptionSettings(
        enable_wildcard=True, shuffle_caption=True, caption_dropout_rate=0.5, caption_suffix="outdoors"
    )
    assert class_prompt(SubsetPlan(Path("a"), class_tokens="cat, red", captions=settings)) == (
        "cat, red outdoors"
    )
    with pytest.raises(UserError, match=r"write it without \{a\|b\}"):
        class_prompt(SubsetPlan(Path("a"), class_tokens="{cat|dog}", captions=settings))
