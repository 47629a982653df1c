"""Hashes and modelspec fields are those that sd-scripts writes."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sfumato.checkpoints import modelspec
from sfumato.checkpoints.hashes import adapter_hashes
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.models.interface.identity import ModelIdentity
from tests.golden.derived import cases, rule

HASHES = cases("f_hash")
SPECS = {"seed": cases("f_modelspec_seed"), "head": cases("f_modelspec_head")}

OF_THE_NEWER_VERSION = {"modelspec.sai_model_spec", "modelspec.implementation_version"}
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"
FLUX = "https://github.com/black-forest-labs/flux"


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize("case", HASHES, ids=lambda case: case["id"])
def test_hashes_equal(case: dict[str, Any]) -> None:
    dtype = getattr(torch, case["dtype"])
    tensors = {
        name: rule(f"hash:{name}", tuple(shape)).to(dtype)
        if shape
        else torch.tensor(case["alpha"], dtype=dtype)
        for name, shape in case["tensors"].items()
    }
    hashes = adapter_hashes(tensors, case["metadata"])
    assert hashes["sshs_model_hash"] == case["sshs_model_hash"]
    assert hashes["sshs_legacy_hash"] == case["sshs_legacy_hash"]


def identity_of(options: dict[str, Any], is_newer: bool) -> ModelIdentity:
    """Describe the families of the recorded options as those families describe themselves."""
    is_diffusers = options.get("is_stable_diffusion_ckpt") is False
    implementation = "diffusers" if is_diffusers else GENERATIVE_MODELS
    prediction = "v" if options.get("v_parameterization") else "epsilon"
    if "flux" in options:
        variant = {"dev": "flux-1-dev", "schnell": "flux-1-schnell" if is_newer else "flux-1"}[
            options["flux"]
        ]
        return ModelIdentity("", variant, FLUX, (1024, 1024))
    if "sd3" in options:
        size = options["sd3"] if is_newer else "medium"
        return ModelIdentity(
            "", f"stable-diffusion-3-{size}", implementation, (1024, 1024), prediction, "diffusers"
        )
    if options.get("sdxl"):
        name = "stable-diffusion-xl-v1-base"
        return ModelIdentity("", name, GENERATIVE_MODELS, (1024, 1024), prediction)
    if options.get("v2"):
        name, side = (
            ("stable-diffusion-v2-768-v", 768) if prediction == "v" else ("stable-diffusion-v2-512", 512)
        )
        return ModelIdentity("", name, implementation, (side, side), prediction, "diffusers")
    return ModelIdentity("", "stable-diffusion-v1", implementation, (512, 512), prediction, "diffusers")


def size_of(text: Any) -> tuple[int, int] | None:
    if text is None:
        return None
    sides = [int(side) for side in (text.split(",") if isinstance(text, str) else text)]
    return sides[0], sides[-1]


def range_of(value: Any) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    return (value, value) if isinstance(value, int) else tuple(value)


def built(case: dict[str, Any], is_newer: bool) -> dict[str, str]:
    options = dict(case["options"]) if "options" in case else {**case["args"], "lora": True}
    if "args" in case:
        options |= {"reso": options["resolution"], "title": options["metadata_title"]}
        options["timesteps"] = (options["min_timestep"], options["max_timestep"])
    texts = ("title", "author", "description", "license", "tags", "merged_from")
    kinds = ("lora", "textual_inversion")
    kind: Any = next((name.replace("_", "-") for name in kinds if options.get(name)), "checkpoint")
    return modelspec.build(
        identity_of(options, is_newer),
        MetadataConfig(**{f"metadata_{name}": options.get(name) for name in texts}),
        kind=kind,
        name=options.get("output_name"),
        timestamp=case["timestamp"],
        resolution=size_of(options.get("reso")),
        timestep_range=range_of(options.get("timesteps")),
        encoder_layer=options.get("clip_skip"),
    )


@pytest.mark.parametrize("version", SPECS)
def test_modelspec_fields_equal(version: str) -> None:
    for case in SPECS[version]:
        ours, theirs = built(case, version == "head"), case["metadata"]
        left_out = OF_THE_NEWER_VERSION if version == "head" else set()
        assert {k: v for k, v in ours.items() if k not in left_out} == {
            k: v for k, v in theirs.items() if k not in left_out
        }, case["id"]
    print(f"{len(SPECS[version])} cases of modelspec ({version})")
