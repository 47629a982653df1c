"""Prompts of gen_img: variants, options behind prompts, seeds and names give what sd-scripts gives."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.config.run.image_scripts.image_files import ImageFileConfig
from sfumato.config.run.image_scripts.prompts import PromptSourceConfig
from sfumato.config.run.image_scripts.speed import SpeedConfig
from sfumato.config.run.run import Run
from sfumato.sampling.prompts import variants
from sfumato.sampling.prompts.files import prompt_lines
from sfumato.sampling.sd_scripts.asked_images import AskedImage, ImageList, InOrder, batches_of
from sfumato.sampling.sd_scripts.line_defaults import defaults_of
from sfumato.sampling.sd_scripts.prompt_lines import ListedLines, ModuleLines, PromptLines
from sfumato.sampling.sd_scripts.rounds import asked_by, newest
from sfumato.sampling.sd_scripts.start_files import NO_FILES, StartFiles, files_named
from sfumato.sampling.sd_scripts.written_images import WrittenImages
from sfumato.sampling.settings.sizes import SizeConditions
from tests.golden.derived import cases, settings

PROMPTS = cases("k_gen_prompts")
CLOCK = settings("k_gen_prompts")["clock"].split()[0]
VARIANTS = [case for case in PROMPTS if "variant" in case]
IN_ORDER = [case for case in VARIANTS if "python_seed" in case]
BY_SEED = [case for case in VARIANTS if "seeds" in case]


def drawn_in_order(case: dict[str, Any], rng: random.Random) -> list[str]:
    """Return the prompts of a case: as many as asked for or, if choices are enumerated, one of each."""
    texts = variants.enumerated(case["variant"])
    if len(texts) == 1 and variants.has_variants(texts[0]):
        texts *= case["repeat"]
    return [variants.drawn(text, rng) for text in texts]


@pytest.mark.parametrize("case", IN_ORDER, ids=[case["id"] for case in IN_ORDER])
def test_variants_are_drawn_as_recorded(case: dict[str, Any]) -> None:
    rng = random.Random(case["python_seed"])
    found = drawn_in_order(case, rng)
    if "error" not in case:
        assert found == case["result"]
        assert rng.random() == case["next_random"]
    elif "right" in case:
        assert found == case["right"]
    else:
        assert found in (["a"], ["b"])


@pytest.mark.parametrize("case", BY_SEED, ids=[case["id"] for case in BY_SEED])
def test_variants_that_belong_to_a_seed_are_drawn_as_recorded(case: dict[str, Any]) -> None:
    texts = variants.enumerated(case["variant"]) * case["repeat"]
    found = [variants.drawn_for_seed(text, seed) for text, seed in zip(texts, case["seeds"], strict=True)]
    assert found == case["result"]


OTHERS = ("hires", "i2i", "regional_few")
"""Begin the names of cases that are about images, stages and masks."""

RUNS = [case for case in PROMPTS if "variant" not in case and not case["id"].startswith(OTHERS)]
NEWER = [case for case in cases("k_gen_prompts_head") if case.get("defect", "").startswith("head reads --d")]
SIZES = (1024, 1024)


def run_of(case: dict[str, Any]) -> Run:
    """Return what the command line of a case says."""
    return parse(script_named("gen_img"), case["args"], prog="gen_img").run


def lines_of(case: dict[str, Any], folder: Path) -> PromptLines:
    """Return where the lines of a case come from."""
    if case.get("module"):
        path = folder / "prompts.py"
        path.write_text(case["module"], encoding="utf-8")
        return ModuleLines(path, {}, None, [])
    return ListedLines(prompt_lines("\n".join(case.get("lines") or [case["prompt"]])))


def asked(case: dict[str, Any], folder: Path = Path(), starts: StartFiles = NO_FILES) -> Iterator[AskedImage]:
    """Yield the images of a run in their order."""
    run, lines = run_of(case), lines_of(case, folder)
    config = run[PromptSourceConfig]
    draws = newest(config, lines.num_lines)
    if "python_seed" in case:  # where variants are drawn one after the other, as older versions do
        rng = random.Random(case["python_seed"])
        draws = replace(draws, order=rng, choose=InOrder(rng))
    images = ImageList(defaults_of(run, SIZES), draws.choose, config.images_per_prompt, starts)
    return asked_by(lines, images, draws, config)


def batches(case: dict[str, Any], folder: Path = Path()) -> list[list[AskedImage]]:
    return list(batches_of(asked(case, folder), run_of(case)[SpeedConfig].batch_size))


@pytest.mark.parametrize("case", RUNS, ids=[case["id"] for case in RUNS])
def test_images_are_asked_for_as_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    found, recorded = batches(case, tmp_path), [event for event in case["events"] if event["kind"] == "batch"]
    right = case.get("right", {})
    if "batches" in right:
        assert [[image.request.prompt for image in batch] for batch in found] == right["batches"]
        return
    if case["id"] == "o39":  # where sd-scripts fails
        assert found[0][0].request.gradual_latent is None
        return
    assert len(found) == len(recorded)
    for batch, event in zip(found, recorded, strict=True):
        assert [image.request.prompt for image in batch] == event["prompts"]
        assert [image.request.negative_prompt for image in batch] == event["negatives"]
        assert [image.request.clip_prompt for image in batch] == event["clip_prompts"]
        assert [image.request.seed for image in batch] == event["seeds"]
        said = asdict(batch[0].request)
        sizes = asdict(batch[0].request.sizes or SizeConditions())
        shared = {**said, **sizes, "scale": said["cfg_scale"]}
        assert {name: shared[name] for name in shared.keys() & event.keys()} == {
            name: event[name] for name in shared.keys() & event.keys()
        }


@pytest.mark.parametrize("case", RUNS, ids=[case["id"] for case in RUNS])
def test_adapters_and_small_latents_are_set_as_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    images = [image.request for image in asked(case, tmp_path)]
    by_kind = {kind: [e for e in case["events"] if e["kind"] == kind] for kind in ("ds", "gl", "mul")}
    for event in by_kind["ds"][:1]:
        shrink = next(image.deep_shrink for image in images if image.deep_shrink)
        names = ("depth_1", "timesteps_1", "depth_2", "timesteps_2", "ratio")
        assert [getattr(shrink, name) for name in names] == event["args"]
    for event in by_kind["gl"][:1]:
        gradual = images[0].gradual_latent
        assert gradual is not None
        unsharp = list(asdict(gradual.unsharp).values()) if gradual.unsharp else [None] * 4
        assert unsharp == event["unsharp"]
        for name in ("ratio", "every_n_steps", "ratio_step", "s_noise"):
            assert getattr(gradual, name) == event[name]
        assert gradual.timesteps == event["start_timesteps"]
    strengths = [strength for image in images for strength in image.multipliers or ()]
    assert strengths[: len(by_kind["mul"])] == [event["value"] for event in by_kind["mul"]]


@pytest.mark.parametrize("case", RUNS, ids=[case["id"] for case in RUNS])
def test_files_are_named_and_described_as_recorded(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda _: CLOCK)
    written = WrittenImages(
        replace(run_of(case)[ImageFileConfig], outdir=str(tmp_path / "out")),
        sampler="ddim",
        has_sizes=case["sdxl"],
        details={},
    )
    made = {}
    for batch in batches(case, tmp_path):
        for place, image in enumerate(batch):
            path = written.write(Image.new("RGB", (8, 8)), image, place=place)
            name = re.sub(r"(_\d{3}_\d+)_1.png", r"\1.png", path.name)  # sd-scripts overwrites the other
            with Image.open(path) as file:
                made[name] = {key: text for key, text in file.info.items() if key != "parameters"}
    if case["id"] in ("flush_ds", "o39"):  # other batches, and a run that fails
        return
    assert made.keys() == {file["name"] for file in case["files"]}
    negatives = {
        str(seed): negative
        for event in case["events"]
        if event["kind"] == "batch"
        for seed, negative in zip(event["seeds"], event["negatives"], strict=True)
    }
    for file in case["files"]:
        if text := file["text"]:  # which .webp files do not have
            # That of the last image in the batch is recorded for all of them: a defect of sd-scripts.
            assert made[file["name"]] == {**text, "negative-prompt": negatives[text["seed"]]}


@pytest.mark.parametrize("name", ["i2i", "i2i_wh"])
def test_an_image_tells_the_size_of_what_is_made_of_it(name: str, tmp_path: Path) -> None:
    (case,) = [case for case in PROMPTS if case["id"] == name]
    for file, size in case["images"].items():
        Image.new("RGB", tuple(size)).save(tmp_path / file)
    is_sized = "--W" in case["args"]
    starts = StartFiles(files_named(str(tmp_path), "image_path"), has_own_size=not is_sized)
    found = [image.request for image in asked(case, starts=starts)]
    events = [event for event in case["events"] if event["kind"] == "batch"]
    assert [(each.width, each.height) for each in found] == [(e["width"], e["height"]) for e in events]
    assert [each.strength for each in found] == [event["strength"] for event in events]


def test_a_seed_that_is_none_is_left_out() -> None:
    (case,) = NEWER
    assert [image.request.seed for image in asked(case)] == [5]


def test_every_recorded_run_is_checked() -> None:
    print(f"{len(RUNS)} runs, {len(IN_ORDER)} + {len(BY_SEED)} variants")
    assert len(RUNS) >= 62
