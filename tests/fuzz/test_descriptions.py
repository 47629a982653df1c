"""What people and programs write about images: data sets, metadata, captions, prompts, records in images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset
from sfumato.data.captions import caption_files
from sfumato.data.config import blueprint
from sfumato.data.config.metadata_records import read_records
from sfumato.sampling.output.image_files import RECORD, read_request
from sfumato.sampling.prompts import variants
from sfumato.sampling.prompts.files import read_prompts
from sfumato.sampling.prompts.image_options import parse_image_line
from sfumato.sampling.prompts.prompt_options import parse_line
from sfumato.sampling.request import Request
from sfumato.tools.preparation import records
from tests.data.folders import folder
from tests.fuzz import damage
from tests.fuzz.outcomes import outcome


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("descriptions") / "cats", [(64, 64), (96, 48)])


def run(**where: Any) -> Run:
    sections = [DatasetConfig(**where), CaptionConfig(), LossConfig(), ImageConfig(resolution="64")]
    return Run("script", "family", sections)


METADATA = {
    "im0": {"caption": "a cat", "tags": "cat, tree", "train_resolution": [64, 64]},
    "im1": {"caption": "a dog\nin two lines"},
}


@given(content=damage.damaged_json(METADATA), suffix=st.sampled_from([".json", ".jsonl"]))
def test_metadata_files(cats: Path, content: bytes, suffix: str) -> None:
    file = cats.parent / f"metadata{suffix}"
    file.write_bytes(content)
    given = run(train_data_dir=str(cats), in_json=str(file))
    outcome("metadata", lambda: read_records(file))
    outcome("metadata of tools", lambda: records.read(file, "IN_JSON"))
    outcome("data set of metadata", lambda: dataset.read(blueprint.plans(given), seed=1))


LINES = [json.dumps({"image_path": f"im{number}.png", "caption": "a cat"}) for number in (0, 1)]


@given(content=damage.damaged_bytes("\n".join(LINES).encode()))
def test_metadata_files_of_lines(cats: Path, content: bytes) -> None:
    file = cats.parent / "lines.jsonl"
    file.write_bytes(content)
    outcome("metadata of lines", lambda: read_records(file))


def described(cats: Path) -> str:
    return f"""
[general]
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1

[[datasets]]
resolution = [64, 64]
batch_size = 2
enable_bucket = true
min_bucket_reso = 32
max_bucket_reso = 128
bucket_reso_steps = 16
validation_split = 0.5

  [[datasets.subsets]]
  image_dir = '{cats}'
  num_repeats = 2
  class_tokens = "cat"
  caption_dropout_rate = 0.1
  flip_aug = false
  random_crop = false
"""


@given(data=st.data())
def test_descriptions_of_data_sets(cats: Path, data: st.DataObject) -> None:
    file = cats.parent / "sets.toml"
    file.write_bytes(data.draw(damage.damaged_toml(described(cats))))
    outcome("data set TOML", lambda: dataset.read(blueprint.plans(run(dataset_config=file)), seed=1))


@given(data=st.data())
def test_descriptions_of_data_sets_in_json(cats: Path, data: st.DataObject) -> None:
    subset = {"image_dir": str(cats), "num_repeats": 2, "flip_aug": True, "class_tokens": "cat"}
    sets = {
        "general": {"keep_tokens": 1},
        "datasets": [{"resolution": [64, 64], "batch_size": 1, "subsets": [subset]}],
    }
    file = cats.parent / "sets.json"
    file.write_bytes(data.draw(damage.damaged_json(sets)))
    outcome("data set JSON", lambda: dataset.read(blueprint.plans(run(dataset_config=file)), seed=1))


CAPTION = "ein Kätzchen, 猫, {a|b}, (bright:1.2)"


@given(
    content=damage.damaged_bytes(
        *(CAPTION.encode(kind, "replace") for kind in ("utf-8", "utf-16", "cp932", "cp1252"))
    )
)
def test_captions(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x.txt"
    file.write_bytes(content)

    def read() -> str:
        try:
            return caption_files.read(str(file)).caption(all_lines=True)
        except caption_files.UnreadableCaptionError:
            return ""

    caption = outcome("captions", read)
    assert caption is not None
    caption.encode()  # no half characters, of which tokenizers make nothing


VALUES = [
    "abc",
    "1e99",
    "nan",
    "inf",
    "-inf",
    "",
    "-1",
    "0",
    "9" * 5000,
    "1.5",
    "--",
    "\x00",
    "1,2,,",
    "٣",
    "½",
    "1_0",
]


@st.composite
def prompt_lines(draw: st.DrawFn) -> str:
    options = st.sampled_from(["w", "h", "d", "s", "l", "g", "c", "n", "ss", "m", "x", "W", "-"])
    pieces = draw(st.lists(st.tuples(options, st.sampled_from(VALUES) | st.text(max_size=6)), max_size=4))
    return " ".join([draw(st.text(max_size=8)), *(f"--{name} {value}" for name, value in pieces)])


DEFAULTS = Request("a cat")


@given(line=prompt_lines())
def test_prompt_lines(line: str) -> None:
    said = outcome("prompt lines", lambda: parse_line(line).request(DEFAULTS))
    if said is not None:
        json.dumps([said.prompt, said.negative_prompt], ensure_ascii=False).encode()


@st.composite
def image_lines(draw: st.DrawFn) -> str:
    options = st.sampled_from(["w", "s", "d", "nl", "am", "n", "dsd1", "glus", "f", "-", "X"])
    value = st.sampled_from([*VALUES, "{e$$0-9$$a|b}", "{2-$$a|{b|c}}", "3,.5,1"]) | st.text("{}|$e\\-1,.")
    pieces = draw(st.lists(st.tuples(options, value), max_size=4))
    return " ".join([draw(st.text(max_size=8)), *(f"--{name} {value}" for name, value in pieces)])


@given(line=image_lines(), seed=st.integers(0, 99))
def test_lines_with_variants(line: str, seed: int) -> None:
    for text in outcome("variants", lambda: variants.enumerated(line)) or []:
        drawn = variants.drawn_for_seed(text, seed)
        outcome("image lines", lambda line=drawn: parse_image_line(line).request(Request("")))


PROMPTS = [
    {"prompt": "a cat", "width": 64, "height": 64, "seed": 1, "sample_steps": 4, "scale": 7.5},
    "a dog --w 64 --d 2",
]
PROMPTS_TOML = """
[prompt]
width = 64
height = 64
scale = 7.5

[[prompt.subset]]
prompt = "a cat"
seed = 1
"""


@given(
    file=st.tuples(st.just(".json"), damage.damaged_json(PROMPTS))
    | st.tuples(st.just(".toml"), damage.damaged_toml(PROMPTS_TOML))
    | st.tuples(
        st.just(".txt"), damage.damaged_bytes(b"a cat --w 64 --h 64 --d 1 --s 3 --l 7.5 --n dog\n# x\n")
    )
)
def test_prompt_files(file: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"prompts{file[0]}"
    path.write_bytes(file[1])
    outcome("prompt files", lambda: [said.request(DEFAULTS) for said in read_prompts(path)])


REQUEST = {"request": {"prompt": "a cat", "width": 64, "height": 64, "steps": 4, "seed": 1, "cfg_scale": 7.5}}


@given(text=damage.damaged_json(REQUEST))
def test_the_records_of_images(text: bytes, tmp_path: Path) -> None:
    chunks = PngInfo()
    chunks.add_itxt(RECORD, text.decode("utf-8", "replace"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=chunks)
    outcome("records of images", lambda: read_request(tmp_path / "x.png"))


def png() -> bytes:
    import io

    buffer, chunks = io.BytesIO(), PngInfo()
    chunks.add_text(RECORD, json.dumps(REQUEST))
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=chunks)
    return buffer.getvalue()


@given(content=damage.damaged_bytes(png()))
def test_damaged_images_with_a_record(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    outcome("records of damaged images", lambda: read_request(tmp_path / "x.png"))
