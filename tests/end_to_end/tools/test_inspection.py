from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.cli.main import main, script
from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.data.batches import dataset
from sfumato.data.config import blueprint
from sfumato.tools.inspection.duplicates import difference_hash, groups
from tests import tiny
from tests.data.bad_images import bad_folder
from tests.data.folders import image, pixels

DEFECTS = {
    "truncated.jpg": "truncated",
    "zero_byte.png": "the file is empty",
    "web_page.jpg": "not an image",
    "huge.png": "more than 178 million pixels",
    "no_text.png": "not text in an encoding",
    "western.txt": "Windows-1252",
    "japanese.txt": "Shift-JIS",
    "no_caption.png": "no .txt file",
    "empty.txt": "is empty",
    "twin.jpg": "share names",
    "copy_a.png": "looks alike",
    "tiny.png": "enlarged 3.3 times",
    "panorama.png": "loses 60%",
    "animated.webp": "animated",
    "long.png": "tokens",
}
"""Each file of the bad folder that is to be named, with what is to be said of it."""

SETTINGS = """
[general]
resolution = 64
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 16
caption_extension = ".txt"
{general}
[[datasets]]
batch_size = 2
[[datasets.subsets]]
image_dir = {folder}
{subset}
"""


def described(folder: Path, general: str = "", subset: str = "") -> str:
    path = folder.parent / "data.toml"
    path.write_text(
        SETTINGS.format(folder=json.dumps(str(folder)), general=general, subset=subset), encoding="utf-8"
    )
    return str(path)


def inspect(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["inspect", *argv]) == 0
    return capsys.readouterr().out


def records(folder: Path, argv: Sequence[str]) -> dict:
    assert main(["inspect", *argv, "--json", str(folder / "report.json")]) == 0
    return json.loads((folder / "report.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def flux_tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    model = tiny.flux(tmp_path_factory.mktemp("flux"))
    return ["--family", "flux", "--tokenizer_cache_dir", str(model.tokenizers)]


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyCheckpoint:
    return tiny.sd(tmp_path_factory.mktemp("sd"))


def test_every_defect_of_a_bad_folder_is_named_as_text_json_and_page(
    tmp_path: Path, flux_tokenizers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = described(bad_folder(tmp_path / "bad"))
    page, record = tmp_path / "report.html", tmp_path / "report.json"
    text = inspect(capsys, data, *flux_tokenizers, "--html", str(page), "--json", str(record))
    problems = json.loads(record.read_text("utf-8"))["problems"]
    said = {line: problem["message"] for problem in problems for line in problem["details"]}
    html = page.read_text("utf-8")
    for name, what in DEFECTS.items():
        assert name in text
        assert name in html
        assert what in text
        assert what in html
        assert any(name in line and what in f"{message} {line}" for line, message in said.items()), name
    assert "good_" not in str(said)
    for name in ("with spaces.png", "名前 ünïcode.png", "SHOUTED.PNG", r"two\nlines.png"):
        assert f">{name}</div>" in html


def test_the_figures_of_a_report_are_those_of_its_data(tmp_path: Path, sd: tiny.TinyCheckpoint) -> None:
    for number in range(3):
        image(tmp_path / "a" / f"square_{number}.png", (64, 64), "cat " * (70 + 5 * number))
    image(tmp_path / "a" / "wide.png", (100, 50), "dog")
    found = records(
        tmp_path,
        [described(tmp_path / "a", subset="num_repeats = 3"), "--family", "sd", *sd.arguments],
    )
    assert found["num_shown"] == 12
    data_set = found["datasets"][0]
    assert data_set["num_batches"] == 5 + 2
    assert [folder["num_images"] for folder in data_set["folders"]] == [4]
    square, wide = data_set["buckets"]
    assert square["size"] == [64, 64]
    assert (square["num_images"], square["num_shown"], square["num_shrunk"]) == (3, 9, 0)
    assert wide["size"] == [80, 48]
    assert (wide["num_shrunk"], wide["num_enlarged"]) == (1, 0)
    assert wide["most_loss"] == pytest.approx(1 - 80 * 48 / (96 * 48))
    assert found["lengths"]["text_encoder"] == {
        "limit": 75,
        "least": 1,
        "median": 72.5,
        "most": 80,
        "num_cut": 1,
    }
    longest = next(shown for shown in found["images"] if shown["path"].endswith("square_2.png"))
    assert longest["cut_off"] == " ".join(["cat"] * 5)
    assert [p["kind"] for p in found["problems"]] == ["cut off"]


def test_a_report_shows_captions_and_windows_as_training_draws_them(tmp_path: Path) -> None:
    for number in range(4):
        image(tmp_path / "a" / f"im{number}.png", (160, 64), "one, two, three, four, five")
    data = described(tmp_path / "a", "shuffle_caption = true\nflip_aug = true\nrandom_crop = true")
    found = records(tmp_path, [data, "--seed", "7"])
    run = parse(script_named("inspect"), ["--dataset_config", data], prog="x").run
    training_set = dataset.read(blueprint.plans(run), 7)
    shown = {shown["path"]: shown for shown in found["images"]}
    for plan in training_set.batches(1):
        batch = training_set[plan]
        for path, caption, (_, left) in zip(
            batch.paths, batch.captions, batch.crop_offsets.tolist(), strict=True
        ):
            assert shown[path]["caption"] == caption
            corner = shown[path]["corner"][0]
            mirrored = shown[path]["resized"][0] - corner - shown[path]["bucket"][0]
            assert left == (mirrored if shown[path]["is_flipped"] else corner)
    assert len({shown["caption"] for shown in found["images"]}) > 1
    assert {shown["is_flipped"] for shown in found["images"]} == {True, False}


def test_validation_images_are_shown_and_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        image(tmp_path / "a" / f"im{number}.png", (64, 64), "x")
        image(tmp_path / "b" / f"small{number}.png", (40 + number, 40), "y")
    data = described(tmp_path / "a", subset="num_repeats = 3\nflip_aug = true")
    second = f'[[datasets]]\nvalidation_split = 0.25\n[[datasets.subsets]]\nimage_dir = "{tmp_path / "b"}"\n'
    Path(data).write_text(Path(data).read_text(encoding="utf-8") + second, encoding="utf-8")
    argv = [data, "--validation_split", "0.5", "--validation_seed", "3", "--html", str(tmp_path / "x.html")]
    found = records(tmp_path, argv)
    first, other, held, held_other = found["datasets"]
    assert [d["is_validation"] for d in found["datasets"]] == [False, False, True, True]
    assert [d["folders"][0]["num_images"] for d in (first, other, held, held_other)] == [4, 6, 4, 2]
    assert found["num_shown"] == 3 * 4 + 6
    assert sum(bucket["num_shown"] for bucket in held["buckets"]) == 4, "shown once in a measurement"
    kept = [shown for shown in found["images"] if shown["is_validation"]]
    assert [shown["dataset"] for shown in kept] == [2] * 4 + [3] * 2
    assert not any(shown["is_flipped"] for shown in kept)
    assert len({shown["path"] for shown in found["images"]}) == 16
    assert found["pictures"] == found["images"], "as version 0.1 called them"
    assert [d["is_held_back"] for d in found["datasets"]] == [False, False, True, True]
    assert held["folders"][0]["num_pictures"] == 4
    (enlarged,) = [p for p in found["problems"] if p["kind"] == "enlarged"]
    assert len(enlarged["details"]) == 8, "validation images, too"
    html = (tmp_path / "x.html").read_text("utf-8")
    assert html.count("<span>validation</span>") == 6
    text = capsys.readouterr().out
    assert "10 images, 18 shown in an epoch, and 6 for validation" in text
    assert re.search(r"Data set 3 \(validation\): .*, 2 batches a measurement", text)


def test_a_page_needs_nothing_from_elsewhere_and_takes_any_text_for_text(tmp_path: Path) -> None:
    image(tmp_path / "a" / "<b>&.png", (64, 64), "<script>alert('x')</script>")
    page = tmp_path / "report.html"
    assert main(["inspect", described(tmp_path / "a"), "--html", str(page)]) == 0
    html = page.read_text("utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in html
    assert "&lt;b&gt;&amp;.png" in html
    assert re.findall(r'(?:src|href)="(?!data:image/)', html) == []
    assert re.findall(r"https?://|@import|url\(", html) == []


def test_the_page_shows_the_whole_image_its_window_and_what_its_mask_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    rgba = np.dstack([pixels("rgba", 128, 64), np.full((64, 128), 255, np.uint8)])
    rgba[:, :64, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "a" / "x.png")
    data = described(tmp_path / "a", subset="alpha_mask = true")
    page = tmp_path / "report.html"
    assert main(["inspect", data, "--html", str(page)]) == 0
    html = page.read_text("utf-8")
    assert 'class="crop" style="left:' in html
    thumbnail, veil = (image_in(html, kind) for kind in ("jpeg", "png"))
    assert thumbnail.size == (128, 64)
    alpha = np.asarray(veil.getchannel("A"))
    assert alpha[:, :60].min() > 150
    assert alpha[:, 68:].max() == 0


def image_in(html: str, kind: str) -> Image.Image:
    found = re.search(rf"data:image/{kind};base64,([^\"]+)", html)
    assert found
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_thumbnails_are_limited_and_images_with_problems_come_first(tmp_path: Path) -> None:
    for number in range(6):
        image(tmp_path / "a" / f"im{number}.png", (64, 64), "good")
    image(tmp_path / "a" / "small.png", (20, 20), "bad")
    page = tmp_path / "report.html"
    assert main(["inspect", described(tmp_path / "a"), "--html", str(page), "--thumbnails", "3"]) == 0
    html = page.read_text("utf-8")
    assert html.count('<article class="card">') == 3
    assert 'small.png</div><div class="meta">20 &times; 20' in html
    assert "3 of 7 images are shown" in html


def test_pixels_can_be_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image(tmp_path / "a" / "x.png", (64, 64), "x")
    monkeypatch.setattr("sfumato.data.images.images.decode", None)
    argv = [described(tmp_path / "a"), "--skip_pixels", "--html", str(tmp_path / "x.html")]
    found = records(tmp_path, argv)
    assert not found["is_complete"]
    assert "data:image" not in (tmp_path / "x.html").read_text("utf-8")


def test_a_strict_inspection_fails_where_something_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "a" / "x.png", (64, 64), "x")
    data = described(tmp_path / "a")
    assert main(["inspect", data, "--strict"]) == 0
    (tmp_path / "a" / "y.png").write_bytes(b"")
    assert main(["inspect", data]) == 0
    assert main(["inspect", data, "--strict"]) == 2
    assert "y.png: the file is empty" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["missing.toml"], "missing.toml cannot be read"),
        (["--family", "fluks"], "there is no family 'fluks'; known: flux"),
        ([], "no training data is given"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", *argv]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_of_repeats_and_classes_can_be_named_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "a" / "4_cat" / "x.png", (64, 64))
    text = inspect(capsys, str(tmp_path / "a"), "--resolution", "64")
    assert "1 image, 4 shown in an epoch" in text
    assert "No problems found." in text


@pytest.mark.parametrize("name", ["flux_train_network", "train_network", "sdxl_train_network"])
def test_a_trainer_shows_its_data_without_loading_any_model(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image(tmp_path / "a" / "x.png", (64, 64), "cat")
    makers = {"flux_train_network": tiny.flux, "train_network": tiny.sd, "sdxl_train_network": tiny.sdxl}
    tokenizers = makers[name](tmp_path / "model").tokenizers
    argv = ["--dataset_config", described(tmp_path / "a"), "--tokenizer_cache_dir", str(tokenizers)]
    argv += ["--pretrained_model_name_or_path", str(tmp_path / "none.safetensors"), "--debug_dataset"]
    assert script(name, [*argv, "--output_dir", str(tmp_path / "out"), "--output_name", "x"]) == 0
    assert "1 image, 1 shown in an epoch" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dataset.html"]


def test_only_one_of_several_processes_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["inspect", str(tmp_path / "missing.toml")]) == 0
    assert capsys.readouterr().out == ""


def test_groups_of_likeness_are_those_of_comparing_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = [int(value) for value in rng.integers(0, 2**63, 300)]
    for original in hashes[:40]:
        flips = rng.choice(64, size=int(rng.integers(0, 9)), replace=False)
        hashes.append(original ^ sum(1 << int(bit) for bit in flips))
    found = groups(hashes, most=4)
    pairs = {(i, j) for i in range(len(hashes)) for j in range(i) if (hashes[i] ^ hashes[j]).bit_count() <= 4}
    together = {(i, j) for group in found for i in group for j in group if j < i}
    assert len(pairs) > 10
    assert together == pairs


def test_images_linked_by_a_third_are_one_group() -> None:
    assert groups([0b111100001111, 0b1111, 0, 1 << 40]) == [[0, 1, 2, 3]]
    assert groups([5, 5, 1 << 20 | 1 << 30 | 1 << 40 | 1 << 50 | 7, 2**64 - 1]) == [[0, 1]]


def test_size_and_quality_hardly_change_the_hash_and_other_images_do() -> None:
    image = Image.fromarray(pixels("hash", 12, 12)).resize((400, 300), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    image.resize((133, 100)).save(stream, "JPEG", quality=40)
    small = Image.open(stream)
    other = Image.fromarray(pixels("other", 12, 12)).resize((400, 300), Image.Resampling.BICUBIC)
    assert (difference_hash(image) ^ difference_hash(small)).bit_count() <= 4
    assert (difference_hash(image) ^ difference_hash(other)).bit_count() > 16
