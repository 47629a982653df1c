"""Prompts of gen_img: variants, options behind prompts, seeds and names give what sd-scripts gives."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from typing import Any

import pytest

from sfumato.sampling.output import image_names
from sfumato.sampling.prompts import variants
from sfumato.sampling.prompts.files import prompt_lines
from sfumato.sampling.prompts.image_options import parse_image_line, parse_unsharp
from sfumato.sampling.prompts.seeds import drawn_seeds, seeds_of_line
from sfumato.sampling.request import Request, batches_in_order
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent
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


OTHERS = ("hires", "i2i", "shuffle", "module", "regional_few")
"""Begin the names of cases that are about images, masks, modules and the order of prompts."""

RUNS = [case for case in PROMPTS if "variant" not in case and not case["id"].startswith(OTHERS)]
NEWER = [case for case in cases("k_gen_prompts_head") if case.get("defect", "").startswith("head reads --d")]


@dataclass(frozen=True)
class Asked:
    """One image of a run.

    Attributes:
        line: it was made of, as it stands in the file.
        name: that the line gives its file.
    """

    line: str
    request: Request
    seed: int
    name: str | None


def options(case: dict[str, Any]) -> dict[str, str]:
    """Return the options of a case that take one value."""
    args = case["args"]
    return {name: value for name, value in zip(args, [*args[1:], ""], strict=True) if name.startswith("--")}


def defaults(given: Mapping[str, str], num_adapters: int) -> tuple[Request, DeepShrink, GradualLatent]:
    """Return what a command line says of every image, and of what lines complete."""

    def read(names: str, convert: type) -> dict[str, Any]:
        pairs = (name.split("=") for name in names.split())
        return {field: convert(given[f"--{name}"]) for field, name in pairs if f"--{name}" in given}

    strengths = [float(given["--network_mul"]), 0.3, 1.0][:num_adapters] if num_adapters else []
    shrink = DeepShrink(**read("depth_1=ds_depth_1", int), **read("ratio=ds_ratio", float))
    gradual = GradualLatent(**read("timesteps=gradual_latent_timesteps", int))
    if unsharp := given.get("--gradual_latent_unsharp_params"):
        gradual = replace(gradual, unsharp=parse_unsharp(unsharp))
    names = ("original_width", "original_height", "crop_top", "crop_left")
    told = " ".join(f"{name}={name}" for name in names)
    image = Request(
        "",
        multipliers=tuple(strengths),
        deep_shrink=shrink if "--ds_depth_1" in given else None,
        gradual_latent=gradual if "--gradual_latent_timesteps" in given else None,
        sizes=SizeConditions(**read(told, int)),
        **{"width": 512, "height": 512, "steps": 50} | read("width=W height=H steps=steps", int),
        **{"cfg_scale": 7.5, "strength": 0.8} | read("cfg_scale=scale strength=strength", float),
        **read("negative_scale=negative_scale", float),
    )
    return image, shrink, gradual


def asked(case: dict[str, Any]) -> Iterator[Asked]:
    """Yield the images of a run in their order."""
    given, rng = options(case), random.Random(case.get("python_seed"))
    lines = prompt_lines("\n".join(case.get("lines") or [case["prompt"]]))
    number, rounds = int(given.get("--images_per_prompt", 1)), int(given.get("--n_iter", 1))
    seeds = drawn_seeds(int(given["--seed"]), is_single=number * rounds * len(lines) == 1)
    current, shrink, gradual = defaults(given, 3 if "--network_module" in given else 0)
    for _ in range(rounds):
        seeds_of_round = repeat(next(seeds)) if "--iter_same_seed" in given else seeds
        for line in lines:
            for text, copies in expanded(line, number, rng):
                said = parse_image_line(text)
                made = said.request(current, shrink, gradual)
                for place, seed in enumerate(seeds_of_line(said.seeds, copies, seeds_of_round)):
                    yield Asked(text, made, seed, None if place else said.file_name)
                kept = {"deep_shrink": made.deep_shrink, "gradual_latent": made.gradual_latent}
                current = replace(current, **kept)


def expanded(line: str, number: int, rng: random.Random) -> list[tuple[str, int]]:
    """Return the lines that a line makes, each with the number of its images."""
    if not variants.has_variants(line):
        return [(line, number)]
    texts = variants.enumerated(line)
    texts = texts * number if len(texts) == 1 else texts
    return [(variants.drawn(text, rng), 1) for text in texts]


def batches(case: dict[str, Any]) -> list[list[Asked]]:
    images = list(asked(case))
    places = batches_in_order([image.request for image in images], int(options(case).get("--batch_size", 1)))
    return [[images[place] for place in batch] for batch in places]


@pytest.mark.parametrize("case", RUNS, ids=[case["id"] for case in RUNS])
def test_images_are_asked_for_as_recorded(case: dict[str, Any]) -> None:
    found, recorded = batches(case), [event for event in case["events"] if event["kind"] == "batch"]
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
        assert [image.seed for image in batch] == event["seeds"]
        said = asdict(batch[0].request)
        shared = {**said, **said["sizes"], "scale": said["cfg_scale"]}
        assert {name: shared[name] for name in shared.keys() & event.keys()} == {
            name: event[name] for name in shared.keys() & event.keys()
        }


@pytest.mark.parametrize("case", RUNS, ids=[case["id"] for case in RUNS])
def test_adapters_and_small_latents_are_set_as_recorded(case: dict[str, Any]) -> None:
    images = [image.request for image in asked(case)]
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
def test_files_are_named_and_described_as_recorded(case: dict[str, Any]) -> None:
    is_numbered, made = "--sequential_file_name" in case["args"], {}
    for batch in batches(case):
        for place, image in enumerate(batch):
            usual = (
                image_names.numbered_name(len(made) + 1)
                if is_numbered
                else image_names.dated_name(CLOCK, place, image.seed)
            )
            made[image.name or usual] = image_names.text_chunks(
                image.request,
                seed=image.seed,
                sampler="ddim",
                raw_prompt=image.line,
                has_sizes=case["sdxl"],
            )
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


def test_a_seed_that_is_none_is_left_out() -> None:
    (case,) = NEWER
    assert [image.seed for image in asked(case)] == [5]


def test_every_recorded_run_is_checked() -> None:
    print(f"{len(RUNS)} runs, {len(IN_ORDER)} + {len(BY_SEED)} variants")
    assert len(RUNS) >= 60
