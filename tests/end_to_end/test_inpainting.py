"""Adapters of models that repaint a part of an image: trained, resumed, shown, and as diffusers has them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from sfumato.cli.main import script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from sfumato.models.registry.families import family_for
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from sfumato.sampling.output.image_files import read_request
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests import tiny
from tests.pipelines import pipeline_from
from tests.runs import differing, others_slow, refusal

KINDS = ("sd1", "sdxl")
SHORT = shlex.split(
    "--output_name lora --network_module networks.lora --network_dim 2 --network_train_unet_only --flip_aug "
    "--learning_rate 5e-2 --resolution 64 --caption_extension .txt --seed 1 --train_inpainting"
)
WORKERS = "--max_data_loader_n_workers"
STATES = shlex.split("--max_train_epochs 2 --save_every_n_epochs 1 --save_state")


@dataclass(frozen=True)
class Model:
    """A tiny model that repaints images, what it is trained on, and what a run of two epochs saved."""

    kind: str
    base: tiny.TinyCheckpoint
    folder: Path

    @property
    def images(self) -> Path:
        return self.folder / "data"

    @property
    def file(self) -> Path:
        return self.folder / "whole" / "lora.safetensors"

    def arguments(self, out: Path, *options: str) -> tuple[str, list[str]]:
        name = "sdxl_train_network" if self.kind == "sdxl" else "train_network"
        places = ["--train_data_dir", str(self.images), "--output_dir", str(out)]
        return name, [*self.base.arguments, *places, *SHORT, *options]


BOTH = pytest.mark.parametrize("model", KINDS, indirect=True)


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp(request.param)
    tiny.pictures(folder / "data" / "1_cat", 2)
    photo, mask = (folder / f"{name}.png" for name in ("photo", "mask"))
    tiny.pictures(folder / "shown", 1, (64, 48))[0].rename(photo)
    white = np.zeros((48, 64), np.uint8)
    white[8:40, 16:] = 255
    Image.fromarray(white).save(mask)
    prompts = folder / "prompts.txt"
    size = "--w 64 --h 64 --s 1 --d 1"
    prompts.write_text(
        f"a cat --img {photo} --mask {mask} {size}\na cat --img {photo} {size}\na cat {size}\n"
    )
    make: Any = tiny.sdxl if request.param == "sdxl" else tiny.sd
    made = Model(request.param, make(folder / "model", inpaints=True), folder)
    previews = ["--sample_prompts", str(prompts), "--sample_every_n_epochs", "2"]
    name, arguments = made.arguments(folder / "whole", WORKERS, "0", *STATES, *previews)
    assert script(name, arguments) == 0
    return made


@pytest.mark.parametrize("model", others_slow(KINDS, ["sdxl"]), indirect=True)
def test_a_resumed_run_equals_an_uninterrupted_one_whatever_loads_its_images(
    model: Model, tmp_path: Path
) -> None:
    state = str(model.file.parent / "lora-000001-state")
    name, arguments = model.arguments(tmp_path, WORKERS, "2", *STATES, "--resume", state)
    assert script(name, arguments) == 0
    whole = load_file(model.file)
    assert differing(load_file(tmp_path / "lora.safetensors"), whole) == []
    assert sum(bool(value.any()) for key, value in whole.items() if "lora_up" in key) > 100


@BOTH
def test_previews_fill_what_the_mask_says(model: Model) -> None:
    first, second, third = sorted((model.file.parent / "sample").glob("*.png"))
    requests = [read_request(path) for path in (first, second, third)]
    photo, mask = str(model.folder / "photo.png"), str(model.folder / "mask.png")
    assert [(r.image, r.mask) for r in requests] == [(photo, mask), (photo, None), (None, None)]
    images = [np.asarray(Image.open(path)).astype(float) for path in (first, second, third)]
    assert np.abs(images[0] - images[1]).mean() > 0.1
    assert np.abs(images[0] - images[2]).mean() > 0.1


REQUEST = Request(
    "a red cat",
    negative_prompt="blue dog",
    width=64,
    height=48,
    steps=3,
    seed=11,
    cfg_scale=5.0,
    sampler="ddim",
)


def ours(model: Model, request: Request, adapter: Path | None) -> np.ndarray:
    """Return our image (H, W, 3) in [0, 1], before it is rounded."""
    config = ModelConfig(
        pretrained_model_name_or_path=str(model.base.path), tokenizer_cache_dir=str(model.base.tokenizers)
    )
    family = family_for(Run("some_script", "sdxl" if model.kind == "sdxl" else "sd", [config]))
    attach = Attachments(family, [AdapterFile(adapter)] if adapter else [], dtype=torch.float32)
    family.check((DENOISER, VAE))
    pipeline = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32, on_load=attach)
    decode, decoded = family.decode_image, list[Tensor]()

    def watch(vae: nn.Module, latents: Tensor) -> Tensor:
        decoded.append(decode(vae, latents))
        return decoded[-1]

    family.decode_image = watch  # type: ignore[method-assign]
    pipeline(request)
    return (decoded[0][0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1)


def theirs(model: Model, request: Request, adapter: Path | None) -> np.ndarray:
    """Return the public pipeline's image, of the same masked latents."""
    import diffusers

    kind: Any = getattr(diffusers, f"StableDiffusion{'XL' if model.kind == 'sdxl' else ''}InpaintPipeline")
    parts = pipeline_from(model.base.path, model.kind, model.base.tokenizers).components
    parts = {name: part for name, part in parts.items() if part is not None and name != "image_encoder"}
    none = {} if model.kind == "sdxl" else {"safety_checker": None, "feature_extractor": None}
    parts["unet"].register_to_config(sample_size=64)  # this pipeline of diffusers asks for it
    public = kind(**parts, **none, **({} if none else {"add_watermarker": False}))
    public.scheduler = type(public.scheduler).from_config(
        public.scheduler.config, steps_offset=1, set_alpha_to_one=True, timestep_spacing="leading"
    )
    if adapter:
        public.load_lora_weights(str(adapter.parent), weight_name=adapter.name)
    assert request.image
    assert request.mask
    photo, mask = Image.open(request.image), Image.open(request.mask)
    left = (np.asarray(photo) / 127.5 - 1) * (np.asarray(mask) < 128)[..., None]
    made = public(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=photo,
        mask_image=mask,
        masked_image_latents=encoded(public, torch.from_numpy(left).permute(2, 0, 1)[None].float()),
        width=request.width,
        height=request.height,
        strength=1.0,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        generator=torch.Generator().manual_seed(request.seed),
        output_type="np",
    )
    return made.images[0]


def encoded(public: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return public.vae.encode(pixels).latent_dist.mean * public.vae.config.scaling_factor


@BOTH
@pytest.mark.filterwarnings("ignore")  # of diffusers and peft
def test_images_equal_those_of_the_public_pipeline_with_and_without_the_adapter(model: Model) -> None:
    request = Request(
        **{
            **vars(REQUEST),
            "image": str(model.folder / "photo.png"),
            "mask": str(model.folder / "mask.png"),
        }
    )
    images = []
    for adapter in (None, model.file):
        made, expected = ours(model, request, adapter), theirs(model, request, adapter)
        error = float(np.abs(made - expected).max())
        print(f"{model.kind}, {'LoRA' if adapter else 'base'}: difference {error:.1e}")
        assert expected.std() > 0.02
        assert error < 1e-3
        images.append(made)
    assert np.abs(images[0] - images[1]).max() > 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "is an inpainting model; add --train_inpainting"),
        ("--train_inpainting --cache_latents", "--train_inpainting excludes --cache_latents"),
    ],
)
def test_what_does_not_go_together_is_one_line(
    options: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = tiny.sd(tmp_path / "model", inpaints=True)
    tiny.pictures(tmp_path / "data" / "1_cat", 1)
    places = ["--train_data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    shared = [option for option in SHORT if option != "--train_inpainting"]
    assert script("train_network", [*base.arguments, *places, *shared, *options.split()]) == 2
    assert message in refusal(capfd)


def test_a_whole_model_that_is_trained_learns_to_look_at_masks_and_goes_on_from_its_state(
    tmp_path: Path,
) -> None:
    base = tiny.sd(tmp_path / "model")
    tiny.pictures(tmp_path / "data" / "1_cat", 2)
    shared = "--output_name model --learning_rate 1e-3 --resolution 64 --caption_extension .txt --seed 1 "
    shared += "--max_train_steps 2 --save_every_n_steps 1 --save_state --train_inpainting"

    def train(out: Path, *options: str) -> dict[str, Tensor]:
        places = [*base.arguments, "--train_data_dir", str(tmp_path / "data"), "--output_dir", str(out)]
        assert script("fine_tune", [*places, *shared.split(), WORKERS, "0", *options]) == 0
        return load_file(out / "model.safetensors")

    whole = train(tmp_path / "whole")
    first, before = "model.diffusion_model.input_blocks.0.0.weight", load_file(base.path)
    assert [name for name in before if whole[name].shape != before[name].shape] == [first]
    assert whole[first].shape == (32, 9, 3, 3)
    assert bool(whole[first][:, 4:].all())
    state = str(tmp_path / "whole" / "model-step00000001-state")
    assert differing(train(tmp_path / "resumed", "--resume", state), whole) == []
