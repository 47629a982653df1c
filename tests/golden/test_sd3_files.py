"""Whole models of full size are saved as sd-scripts saves them, and the blocks that it should freeze stay.

Models are headers of files without numbers behind them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.full_size_runs import write_header, write_model
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.families.sd3.files import Sd3Files
from sfumato.models.families.sd3.network import MMDiT, MMDiTShape
from sfumato.models.families.sd3.text import CLIP_G, CLIP_L, OUTPUTS, T5XXL
from sfumato.models.families.sd3.writing.publisher import Sd3Publisher
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Layout, Publishing, tensors_of
from sfumato.training.trainables.part_rates import PartRates
from tests import tiny
from tests.golden.derived import cases
from tests.runs import others_slow

NAMES = Path(__file__).parents[1] / "models/families"
TABLES = {DENOISER: "sd3/names/sd3_medium_mmdit", CLIP_L: "flux/names/clip_l", CLIP_G: "sd3/names/clip_g"}
TABLES[T5XXL] = "flux/names/t5xxl"
VERSIONS = ("k_sd3_more_seed", "k_sd3_more_head")
SAVES = [(name, case) for name in VERSIONS for case in cases(name) if "files" in case]
SAVE_IDS = {f"{name[-4:]}-{case['id']}": (name, case) for name, case in SAVES}
OFTEN = ("seed-save_all", "head-save_all")
KEYS = [case for case in cases(VERSIONS[0]) if case["id"].startswith("keys")]
FREEZES = [case for case in cases(VERSIONS[0]) if "right_count" in case]
TRAINED = {"save_clip": (CLIP_L, CLIP_G), "save_all": (CLIP_L, CLIP_G, T5XXL)}
SHARED = "text_encoders.t5xxl.transformer.shared.weight"
"""What sd-scripts leaves out beside the same tensor's other name, without which no other program reads T5."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Sd3Files:
    folder = tmp_path_factory.mktemp("full")
    files = {part: folder / f"{part}.safetensors" for part in (*TABLES, VAE)}
    for part, table in TABLES.items():
        write_model(files[part], NAMES / f"{table}.tsv.gz")
    shapes = dict(tiny.autoencoder(128, 16, (1, 2, 4, 4), 2))
    write_header(files[VAE], {name: ("F16", shape) for name, shape in shapes.items()})
    return Sd3Files(files, use_mmap=True, denoiser_option="pretrained_model_name_or_path")


def hashed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    lines = (f"{name}|{list(shape)}" for name, shape in sorted(shapes.items()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def written(base: Sd3Files, trained: Iterable[str], included: Iterable[str]) -> Iterator[WeightFile]:
    how = Publishing(Layout.WHOLE_FILE, metadata={"told": "something"})
    parts = {part: tensors_of(base.without_numbers(part)) for part in (DENOISER, *trained)}
    with Sd3Publisher(base, [*included]).files(parts, Path("out.safetensors"), how) as files:
        yield from files


@pytest.mark.parametrize("name", others_slow(SAVE_IDS, OFTEN))
def test_files_have_the_recorded_names_and_shapes(name: str, base: Sd3Files) -> None:
    version, case = SAVE_IDS[name]
    is_newer = version.endswith("head")
    clips = case["id"] in ("save_clip", "save_all") and not is_newer
    t5 = case["id"] in ("save_t5", "save_all") and not is_newer
    included = [part for part in OUTPUTS if (t5 if part == T5XXL else clips)]
    found = {
        file.path.name: file
        for file in written(base, TRAINED.get(case["id"], ()) if is_newer else (), included)
    }
    assert found.keys() == case["files"].keys()
    for file, recorded in case["files"].items():
        shapes = {key: tensor.shape for key, tensor in found[file].tensors.items()}
        assert (SHARED in shapes) == t5
        shapes.pop(SHARED, None)
        assert (len(shapes), hashed(shapes)) == (recorded["count"], recorded["shapes_hash"])
        assert bool(found[file].metadata) == recorded["metadata"]


@pytest.mark.slow
@pytest.mark.parametrize("case", KEYS, ids=lambda case: case["id"])
def test_text_encoders_lie_in_the_file_under_the_recorded_names(case: dict[str, Any], base: Sd3Files) -> None:
    part = case["id"].removeprefix("keys_")
    (file,) = written(base, (), [part])
    prefix = f"text_encoders.{part}."
    names = sorted(name.removeprefix(prefix) for name in file.tensors if name.startswith(prefix))
    names = [name for name in names if prefix + name != SHARED]
    if case.get("keys"):
        assert names == sorted(case["keys"])
    else:
        assert (len(names), hashlib.sha256("\n".join(names).encode()).hexdigest()) == (
            case["count"],
            case["hash"],
        )


@pytest.mark.parametrize("case", FREEZES, ids=lambda case: case["id"])
def test_the_last_blocks_stay_as_they_are(case: dict[str, Any]) -> None:
    """The cases are defects: sd-scripts counts single weights. Right are whole blocks."""
    assert case["judge"] == "right"
    with torch.device("meta"):
        model = MMDiT(MMDiTShape())
    family = Sd3Family({})
    (group,) = PartRates(1.0, num_still=case["n"]).groups(family, {DENOISER: model})
    trained = {id(weight) for weight in group.parameters}
    still = [name for name, weight in model.named_parameters() if id(weight) not in trained]
    assert len(still) == case["right_count"]
    assert hashlib.sha256("\n".join(still).encode()).hexdigest() == case["right_hash"]
    assert sorted({int(name.split(".")[1]) for name in still}) == case["right_blocks"]


def test_every_case_is_checked_or_a_defect() -> None:
    ids = [case["id"] for name in VERSIONS for case in cases(name)]
    elsewhere = [case for case in cases(VERSIONS[1]) if {"queries", "rate", "rates"} & case.keys()]
    print(f"k_sd3_more: {len(ids)} cases, {len(FREEZES)} of them defects")
    assert len(ids) == len(SAVES) + len(KEYS) + len(FREEZES) + len(elsewhere)
