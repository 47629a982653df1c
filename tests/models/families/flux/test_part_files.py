"""The parts of a FLUX load and are saved alike, whatever program wrote their files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.checkpoints.lazy import LazyTensor
from sfumato.errors import UserError
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.families.flux.keys import to_diffusers
from sfumato.models.interface.publishing import Publishing, tensors_of
from sfumato.models.registry.whole_models import open_rewritable
from tests import tiny

CPU = torch.device("cpu")
ARGUMENTS = {"denoiser": "transformer", "clip_l": "clip_l", "t5xxl": "t5xxl", "vae": "ae"}
TEXT = "text_model."
VISION = {
    "vision_model.embeddings.class_embedding": torch.ones(4),
    "visual_projection.weight": torch.ones(4, 4),
    "text_projection.weight": torch.ones(4, 4),
    "logit_scale": torch.ones(()),
}
FORMS: dict[str, tuple[str, Callable[[str], str]]] = {
    "diffusion_model": ("denoiser", lambda name: f"diffusion_model.{name}"),
    "transformer": ("denoiser", lambda name: f"transformer.{name}"),
    "model.diffusion_model": ("denoiser", lambda name: f"model.diffusion_model.{name}"),
    "first_stage_model": ("vae", lambda name: f"first_stage_model.{name}"),
    "vae": ("vae", lambda name: f"vae.{name}"),
    "t5xxl.transformer": ("t5xxl", lambda name: f"t5xxl.transformer.{name}"),
    "text_encoders.t5xxl": ("t5xxl", lambda name: f"text_encoders.t5xxl.transformer.{name}"),
    "text_encoders.clip_l": ("clip_l", lambda name: f"text_encoders.clip_l.transformer.{name}"),
    "bare clip": ("clip_l", lambda name: name.removeprefix(TEXT)),
    "clip of sd1": ("clip_l", lambda name: f"cond_stage_model.transformer.{name}"),
    "clip of sdxl": ("clip_l", lambda name: f"conditioner.embedders.0.transformer.{name}"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("flux"), depth=1, depth_single=1, text_dtype=torch.float32)


def path_of(files: tiny.TinyFlux, part: str) -> Path:
    return {"denoiser": files.transformer, "clip_l": files.clip_l, "t5xxl": files.t5xxl, "vae": files.ae}[
        part
    ]


def family_of(files: tiny.TinyFlux, **changed: Path) -> FluxFamily:
    paths = {ARGUMENTS[part]: path_of(files, part) for part in ARGUMENTS}
    changes = {ARGUMENTS[part]: path for part, path in changed.items()}
    return FluxFamily(**(paths | {"tokenizers": files.tokenizers} | changes))


def weights(family: FluxFamily, part: str) -> dict[str, Tensor]:
    family.check([part])
    return family.load(part, torch.float32, CPU).state_dict()


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("form", FORMS)
def test_a_part_with_any_prefix_loads_and_is_saved_as_published(
    form: str, files: tiny.TinyFlux, tmp_path: Path
) -> None:
    part, named = FORMS[form]
    path = tmp_path / "part.safetensors"
    save_file({named(name): value for name, value in load_file(path_of(files, part)).items()}, path)
    family = family_of(files, **{part: path})
    assert_equal(weights(family, part), weights(family_of(files), part))

    saved = tmp_path / "saved" / "part.safetensors"
    model = family.load(part, torch.bfloat16 if part == "denoiser" else torch.float32, CPU)
    family.write({part: tensors_of(model)}, saved, Publishing())
    (written,) = saved.parent.iterdir()
    published = {name.removeprefix(TEXT): value for name, value in load_file(path_of(files, part)).items()}
    assert_equal({name.removeprefix(TEXT): value for name, value in load_file(written).items()}, published)


def test_one_file_with_all_parts_is_the_source_of_each(files: tiny.TinyFlux, tmp_path: Path) -> None:
    prefixes = {
        "denoiser": "model.diffusion_model.",
        "clip_l": "text_encoders.clip_l.transformer.",
        "t5xxl": "text_encoders.t5xxl.transformer.",
        "vae": "vae.",
    }
    parts = {part: load_file(path_of(files, part)) for part in ARGUMENTS}
    whole = {prefixes[part] + name: value for part, own in parts.items() for name, value in own.items()}
    path = tmp_path / "all.safetensors"
    save_file(whole | {"text_encoders.clip_l.logit_scale": torch.ones(())}, path)
    family = family_of(files, **dict.fromkeys(ARGUMENTS, path))
    for part in ARGUMENTS:
        assert_equal(weights(family, part), weights(family_of(files), part))
    save_file(load_file(path) | {"text_encoders.t5xxl.transformer.scaled_fp8": torch.ones(1)}, path)
    assert_equal(weights(family, "denoiser"), weights(family_of(files), "denoiser"))
    with pytest.raises(UserError, match="scaled_fp8 tells"):
        family.check(["t5xxl"])

    saved = tmp_path / "clip.safetensors"
    family.write({"clip_l": tensors_of(family.load("clip_l", torch.float32, CPU))}, saved, Publishing())
    assert_equal(load_file(saved), parts["clip_l"])


def test_a_denoiser_in_diffusers_names_may_have_a_prefix(files: tiny.TinyFlux, tmp_path: Path) -> None:
    own = {name: LazyTensor.of(value) for name, value in load_file(files.transformer).items()}
    path = tmp_path / "model.safetensors"
    save_file({f"transformer.{name}": value.load() for name, value in to_diffusers(own).items()}, path)
    family = open_rewritable(path, "--model")
    assert isinstance(family, FluxFamily)
    assert_equal(weights(family, "denoiser"), weights(family_of(files), "denoiser"))


def test_a_whole_clip_is_used_without_its_encoder_of_images(
    files: tiny.TinyFlux, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clip.safetensors"
    save_file(load_file(files.clip_l) | VISION, path)
    caplog.set_level("INFO")
    assert_equal(weights(family_of(files, clip_l=path), "clip_l"), weights(family_of(files), "clip_l"))
    assert "whole CLIP" in caplog.text


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_pickled_part_may_be_wrapped(wrapper: str, files: tiny.TinyFlux, tmp_path: Path) -> None:
    torch.save({wrapper: load_file(files.ae), "epoch": 3}, tmp_path / "ae.pt")
    family = family_of(files, vae=tmp_path / "ae.pt")
    assert_equal(weights(family, "vae"), weights(family_of(files), "vae"))


@pytest.mark.parametrize(("times", "name"), [(6, "FLUX.1 Fill"), (2, "FLUX.1 Canny or Depth")])
def test_a_denoiser_that_is_shown_more_than_latents_is_named(
    times: int, name: str, files: tiny.TinyFlux, tmp_path: Path
) -> None:
    tensors = load_file(files.transformer)
    tensors["img_in.weight"] = tensors["img_in.weight"].repeat(1, times)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name}.*takes {64 * times} values, not 64.*Kontext"):
        family_of(files, denoiser=tmp_path / "model.safetensors").check(["denoiser"])


def test_redux_is_named(files: tiny.TinyFlux, tmp_path: Path) -> None:
    tensors = {"redux_up.weight": torch.ones(4, 2), "redux_down.weight": torch.ones(2, 4)}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"FLUX\.1 Redux.*give a FLUX\.1 transformer"):
        family_of(files, denoiser=tmp_path / "model.safetensors").check(["denoiser"])
