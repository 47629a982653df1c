from __future__ import annotations

import logging
import pickle
from pathlib import Path

import pytest
from PIL import Image

from sfumato.data.batches import dataset
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.config.plan import DatasetPlan
from sfumato.data.images import images
from sfumato.data.images.buckets import Buckets
from sfumato.data.sources import sources
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.image_table import ImageTable
from sfumato.errors import UserError
from tests.data.bad_images import bad_folder
from tests.data.folders import folder, image, plan, subset


def captions(found: ImageTable) -> dict[str, str]:
    return {Path(p.path).name: p.caption for p in found}


def test_images_of_every_known_suffix_are_found_sorted_and_not_below(tmp_path: Path) -> None:
    for name in ["b.PNG", "a.jpg", "c.webp", "d.BMP", "e e ü.jpeg", "sub/x.png"]:
        image(tmp_path / name, (40, 40), "x")
    (tmp_path / "notes.md").write_text("")
    found = sources.read(plan(subset(tmp_path)), Complaints())
    assert [Path(p.path).name for p in found] == ["a.jpg", "b.PNG", "c.webp", "d.BMP", "e e ü.jpeg"]


def test_a_caption_is_the_first_line_or_all_lines_with_wildcards(tmp_path: Path) -> None:
    image(tmp_path / "x.png", (40, 40))
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf one, two \r\n\r\n three \r\n")
    wild = CaptionSettings(enable_wildcard=True)
    assert sources.read(plan(subset(tmp_path)), Complaints())[0].caption == "one, two"
    assert sources.read(plan(subset(tmp_path, captions=wild)), Complaints())[0].caption == "one, two\nthree"


def test_face_positions_in_a_name_may_lack_in_its_caption_file(tmp_path: Path) -> None:
    image(tmp_path / "my_cat_10_20_30_40.png", (40, 40))
    image(tmp_path / "a_b_c_d.png", (40, 40))
    (tmp_path / "my_cat.txt").write_text("a cat")
    found = sources.read(plan(subset(tmp_path, class_tokens="cls")), Complaints())
    assert captions(found) == {"my_cat_10_20_30_40.png": "a cat", "a_b_c_d.png": "cls"}


def test_missing_captions_are_counted_and_another_suffix_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path / "cat", [(40, 40)] * 3)
    wrong = plan(subset(path, caption_extension=".caption"))
    sources.read(wrong, Complaints())
    assert "3 of 3 images" in caplog.text
    assert "3 have a .txt file: did you mean caption_extension .txt?" in caplog.text
    with pytest.raises(UserError, match=r"did you mean caption_extension \.txt"):
        sources.read(wrong, Complaints(strict=True))


def test_class_tokens_stand_in_for_captions_without_a_complaint(tmp_path: Path) -> None:
    image(tmp_path / "x.png", (40, 40))
    found = sources.read(plan(subset(tmp_path, class_tokens="sks cat")), Complaints(strict=True))
    assert found[0].caption == "sks cat"


def test_class_tokens_do_not_hide_that_the_captions_have_another_suffix(tmp_path: Path) -> None:
    image(tmp_path / "x.png", (40, 40))
    (tmp_path / "x.txt").write_text("a cat")
    wrong = plan(subset(tmp_path, class_tokens="sks cat", caption_extension=".caption"))
    with pytest.raises(
        UserError, match=r"1 of 1 image in .* has no .caption file; 1 has a .txt file: did you mean"
    ):
        sources.read(wrong, Complaints(strict=True))


def test_an_empty_caption_file_is_an_empty_caption_and_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image(tmp_path / "x.png", (40, 40), "")
    assert sources.read(plan(subset(tmp_path, class_tokens="cls")), Complaints())[0].caption == ""
    assert "1 caption file" in caplog.text


def test_a_caption_in_an_older_encoding_is_read_and_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image(tmp_path / "x.png", (40, 40))
    (tmp_path / "x.txt").write_bytes("café".encode("latin-1"))
    assert sources.read(plan(subset(tmp_path)), Complaints())[0].caption == "café"
    assert "1 caption file" in caplog.text
    assert "read as Windows-1252, the first is x.txt; UTF-8 is safe" in caplog.text


def test_an_image_whose_caption_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path, [(40, 40)] * 2)
    (tmp_path / "im0.txt").write_bytes(b"\x81\x8d")
    complaints = Complaints()
    assert len(sources.read(plan(subset(tmp_path)), complaints)) == 1
    assert complaints.broken[0][0].endswith("im0.png")
    assert complaints.broken[0][1].startswith("its caption im0.txt is not text")
    with pytest.raises(UserError, match=r"im0\.png is left out: its caption im0\.txt is not text"):
        sources.read(plan(subset(tmp_path)), Complaints(strict=True))


def test_images_that_share_a_caption_are_named(tmp_path: Path) -> None:
    image(tmp_path / "a.png", (40, 40), "one")
    image(tmp_path / "a.jpg", (40, 40))
    complaints = Complaints()
    sources.read(plan(subset(tmp_path)), complaints)
    message = complaints.warnings[0].message
    assert message.endswith("the first are a.jpg and a.png; give them different names")
    assert complaints.warnings[0].files == ("a.jpg", "a.png")


def test_the_first_frame_of_an_animation_is_used_which_is_said_even_when_strict(tmp_path: Path) -> None:
    for suffix in (".webp", ".png"):
        frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / f"moving{suffix[1:]}{suffix}", save_all=True, append_images=frames[1:])
    complaints = Complaints(strict=True)
    found = sources.read(plan(subset(tmp_path, class_tokens="x")), complaints)
    assert complaints.notes[0].message.startswith("2 images in")
    assert [images.decode(p.path).getpixel((5, 5))[0] > 200 for p in found] == [True, True]


def test_names_with_line_breaks_are_shown_on_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image(tmp_path / "good.png", (40, 40), "x")
    (tmp_path / "two\nlines.png").write_bytes(b"")
    (tmp_path / b"not \xff unicode.png".decode("utf-8", "surrogateescape")).write_bytes(b"")
    with pytest.raises(UserError, match=r"not \\udcff unicode\.png is left out"):
        sources.read(plan(subset(tmp_path, class_tokens="x")), Complaints(strict=True))
    sources.read(plan(subset(tmp_path, class_tokens="x")), Complaints())
    assert r"two\nlines.png is left out" in caplog.text


def test_a_folder_in_which_everything_is_wrong_leaves_what_can_be_trained(tmp_path: Path) -> None:
    training_set = dataset.read([plan(subset(bad_folder(tmp_path / "bad")))], seed=1)
    assert {Path(path).name: reason for path, reason in training_set.broken} == {
        "huge.png": "it has more than 178 million pixels, the most that are read; make it smaller",
        "no_text.png": "its caption no_text.txt is not text in an encoding that is known here; "
        "save it as UTF-8",
        "web_page.jpg": "not an image, or of a format that Pillow cannot read here",
        "zero_byte.png": "the file is empty",
    }
    found = {Path(p.path).name: p.caption for p in training_set.sets[0].images}
    assert found["bom.png"] == "byte order mark"
    assert found["utf_16.png"] == "sixteen bits each"
    assert found["western.png"] == "caf\xe9 d\u2019\xe9t\xe9"
    assert found["japanese.png"] == "猫の写真、ひとり"
    assert len(found) == 29


def test_broken_images_are_left_out_named_once_and_stop_a_strict_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder(tmp_path / "cat", [(40, 40)] * 3)
    (path / "im1.png").write_bytes(b"")
    (path / "im2.png").write_bytes(b"<html>")
    both = [plan(subset(path)), plan(subset(path), resolution=96)]
    training_set = dataset.read(both, seed=1)
    assert [Path(p).name for p, _ in training_set.broken] == ["im1.png", "im2.png"]
    assert caplog.text.count("im1.png is left out: the file is empty") == 1
    assert training_set.num_train_images == 2
    with pytest.raises(UserError, match=r"im1\.png is left out"):
        dataset.read(both, seed=1, strict=True)


def test_an_image_too_small_for_any_bucket_is_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "cat", [(40, 100), (64, 64)])
    buckets = Buckets((128, 128), step=64, no_upscale=True)
    training_set = dataset.read([DatasetPlan((subset(path),), buckets)], seed=1)
    assert [reason for _, reason in training_set.broken] == ["40x100 is smaller than bucket_reso_steps 64"]


@pytest.mark.parametrize("make", ["missing", "empty"])
def test_a_folder_without_images_is_ignored_unless_nothing_is_left(
    tmp_path: Path, make: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "bad"
    if make == "empty":
        bad.mkdir()
    good = subset(folder(tmp_path / "cat", [(40, 40)]))
    assert len(sources.read(plan(good, subset(bad)), Complaints())) == 1
    assert "bad" in caplog.text
    with pytest.raises(UserError, match=r"no images to train on in .*bad; check image_dir"):
        sources.read(plan(subset(bad)), Complaints())


def test_why_no_image_is_left_to_train_on_is_said(tmp_path: Path) -> None:
    cat = subset(folder(tmp_path / "cat", [(40, 40)]), is_reg=True)
    with pytest.raises(UserError, match="every subset of the data set is_reg; add one"):
        sources.read(plan(cat), Complaints())


def test_a_folder_that_cannot_be_read_is_named_once_with_its_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, gone = subset(folder(tmp_path / "cat", [(40, 40)])), tmp_path / "gone"
    masked = subset(folder(tmp_path / "dog", [(40, 40)]), mask_dir=gone / "masks")
    assert len(sources.read(plan(good, subset(gone), masked), Complaints())) == 1
    said = [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()]
    assert said == [
        f"{gone} is ignored: No such file or directory; check image_dir",
        f"{gone / 'masks'} is ignored: No such file or directory; check mask_dir or conditioning_data_dir",
    ]


def test_a_subset_without_repeats_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = folder(tmp_path / "a", [(40, 40)]), folder(tmp_path / "b", [(40, 40)])
    found = sources.read(plan(subset(first), subset(second, num_repeats=0)), Complaints())
    assert len(found) == 1
    assert "num_repeats is 0" in caplog.text


@pytest.mark.parametrize(
    ("num_train", "num_reg", "repeats", "expected"),
    [(5, 3, 1, [2, 2, 1]), (6, 3, 1, [2, 2, 2]), (2, 3, 1, [1, 1]), (5, 2, 2, [3, 2]), (3, 2, 2, [2, 2])],
)
def test_regularisation_images_are_repeated_one_by_one_until_they_suffice(
    tmp_path: Path, num_train: int, num_reg: int, repeats: int, expected: list[int]
) -> None:
    train, reg = folder(tmp_path / "t", [(40, 40)] * num_train), folder(tmp_path / "r", [(40, 40)] * num_reg)
    subsets = (subset(train), subset(reg, is_reg=True, num_repeats=repeats))
    found = sources.read(plan(*subsets), Complaints())
    assert [p.num_repeats for p in found if p.subset == 1] == expected


def test_surplus_regularisation_images_are_mentioned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subsets = (
        subset(folder(tmp_path / "t", [(40, 40)])),
        subset(folder(tmp_path / "r", [(40, 40)] * 3), is_reg=True),
    )
    sources.read(plan(*subsets), Complaints())
    assert "2 of 3 regularisation images" in caplog.text


def test_the_same_complaint_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints()
    with caplog.at_level(logging.WARNING):
        complaints.warn("once")
        complaints.warn("once")
    assert len(caplog.records) == 1


def test_an_image_travels_to_another_process(tmp_path: Path) -> None:
    found = sources.read(plan(subset(folder(tmp_path / "cat", [(40, 40)]))), Complaints())
    assert pickle.loads(pickle.dumps(found)) == found
