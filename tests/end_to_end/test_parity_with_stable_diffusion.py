"""Whole images against the public pipelines: tokens, text, noise levels, samplers, guidance, decoding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import Family, ends_in_pure_noise
from sfumato.models.interface.parts import Parts
from sfumato.models.registry.families import family_for
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests import tiny
from tests.start_images import as_public, encode_without_chance, started

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers

LIMIT = 1e-3
NOTHING: Any = None

REQUEST = Request(
    "a red cat, photo",
    negative_prompt="blue dog",
    width=64,
    height=48,
    steps=10,
    seed=11,
    cfg_scale=5.0,
    sampler="ddim",
)
DDIM = {"steps_offset": 1, "clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "leading"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", DDIM),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "linspace"}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace"}),
}
KINDS: dict[str, tuple[str, dict[str, bool]]] = {
    "sd1": ("sd", {}),
    "sd2": ("sd", {"v2": True, "v_parameterization": True}),
    "sdxl": ("sdxl", {}),
}


class Compared:
    """One tiny model: as a single file, as a folder, and in the public pipeline."""

    def __init__(self, kind: str, folder: Path) -> None:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        maker, self.flags = KINDS[kind]
        self.kind, self.module = kind, maker
        self.folder: tiny.TinyCheckpoint = getattr(tiny, maker)(folder, as_folder=True, **self.flags)
        self.file = replace(self.folder, path=next(folder.glob("*.safetensors")))
        self.public: Any = DiffusionPipeline.from_pretrained(self.folder.path)
        self.public.set_progress_bar_config(disable=True)
        self._schedule = self.public.scheduler.config
        self._parts: dict[str, Parts] = {}

    def family(self, base: tiny.TinyCheckpoint, **options: Any) -> Family:
        config = ModelConfig(
            pretrained_model_name_or_path=str(base.path),
            tokenizer_cache_dir=str(base.tokenizers),
            **self.flags,
            **options,
        )
        return family_for(Run("some_script", self.module, [config]))

    def ours(
        self, request: Request, *, from_folder: bool = False, zero_terminal: bool = False, **options: Any
    ) -> np.ndarray:
        """Return our image (H, W, 3) in [0, 1], before it is rounded."""
        family = self.family(self.folder if from_folder else self.file, **options)
        return self.drawn(family, request, str(from_folder), zero_terminal=zero_terminal)

    def drawn(self, family: Family, request: Request, key: str, *, zero_terminal: bool) -> np.ndarray:
        """Return an image of this family's; parts are loaded once for each key."""
        decoded: list[Tensor] = []
        parts = self._parts.setdefault(key, Parts(family, torch.device("cpu")))
        decode = family.decode_image

        def watch(vae: nn.Module, latents: Tensor) -> Tensor:
            decoded.append(decode(vae, latents))
            return decoded[-1]

        family.decode_image = watch  # type: ignore[method-assign]
        pipeline = Pipeline(family, parts, dtype=torch.float32, zero_terminal=zero_terminal)
        made = np.asarray(pipeline(request)) / 255
        image = (decoded[0][0].permute(1, 2, 0).float().numpy() / 2 + 0.5).clip(0, 1)
        assert np.abs(made - image).max() < 0.51 / 255
        return image

    def theirs(self, request: Request, schedule: dict[str, Any] | None = None, **options: Any) -> np.ndarray:
        """Return the public pipeline's image; `options` may replace the prompt by its embedding."""
        import diffusers

        name, own = SCHEDULERS[request.sampler]
        own = {**own, **(schedule or {})}
        public = self._public_for(request)
        public.scheduler = getattr(diffusers, name).from_config(self._schedule, **own)
        options |= as_public(request, public)
        made = public(
            **{"prompt": request.prompt, "negative_prompt": request.negative_prompt, **options},
            num_inference_steps=request.steps,
            guidance_scale=request.cfg_scale,
            generator=torch.Generator().manual_seed(request.seed),
            output_type="np",
        )
        return made.images[0]

    def _public_for(self, request: Request) -> Any:
        from diffusers.pipelines import auto_pipeline

        if request.image is None:
            return self.public
        self.public.unet.register_to_config(sample_size=64)  # the others of diffusers ask for it
        what = "Inpainting" if request.mask else "Image2Image"
        made = getattr(auto_pipeline, f"AutoPipelineFor{what}").from_pipe(self.public)
        made.set_progress_bar_config(disable=True)
        return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compared]:
    return {kind: Compared(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def difference(one: np.ndarray, other: np.ndarray) -> float:
    assert other.std() > 0.02
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("sampler", SCHEDULERS)
@pytest.mark.parametrize("kind", KINDS)
def test_images_equal_those_of_the_public_pipeline(
    kind: str, sampler: str, models: dict[str, Compared]
) -> None:
    request, model = replace(REQUEST, sampler=sampler), models[kind]
    expected = model.theirs(request)
    found = [difference(model.ours(request), expected)]
    if sampler == "ddim":
        found.append(difference(model.ours(request, from_folder=True), expected))
        assert difference(model.ours(replace(request, prompt="blue sky")), expected) > 0.02
    print(f"{kind} {sampler}: relative difference {max(found):.1e}")
    assert max(found) < LIMIT


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize(("kind", "sampler"), [("sd1", "ddim"), ("sd2", "euler"), ("sdxl", "dpmsolver++")])
def test_images_that_start_from_images_equal_those_of_the_public_pipeline(
    kind: str,
    sampler: str,
    has_mask: bool,
    models: dict[str, Compared],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode_without_chance(monkeypatch)
    request = started(replace(REQUEST, sampler=sampler, steps=5), tmp_path, has_mask=has_mask)
    found = difference(models[kind].ours(request), models[kind].theirs(request))
    print(f"{kind} {sampler}, {'part of ' if has_mask else ''}an image: relative difference {found:.1e}")
    assert found < LIMIT


def test_a_schedule_that_ends_in_pure_noise_is_sampled_as_the_public_pipeline_does(
    models: dict[str, Compared],
) -> None:
    model = models["sd2"]
    ending = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    expected = model.theirs(REQUEST, ending)
    assert difference(model.ours(REQUEST, zero_terminal=True), expected) < LIMIT
    assert difference(model.ours(REQUEST), expected) > 10 * LIMIT


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_a_base_that_says_so_is_sampled_as_the_public_pipeline_samples_velocity_models(
    sampler: str, models: dict[str, Compared]
) -> None:
    model, request = models["sdxl"], replace(REQUEST, sampler=sampler)
    marked = model.file.path.with_name("marked.safetensors")
    nothing = torch.empty(0)
    save_file({**load_file(model.file.path), "v_pred": nothing, "ztsnr": nothing}, marked)
    family = model.family(replace(model.file, path=marked))
    ending = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    spacing = {"timestep_spacing": "trailing"} if sampler == "ddim" else {}
    expected = model.theirs(request, {**ending, **spacing})
    made = model.drawn(family, request, "marked", zero_terminal=ends_in_pure_noise(family))
    found = difference(made, expected)
    print(f"marked sdxl {sampler}: relative difference {found:.1e}")
    assert found < LIMIT
    assert difference(model.ours(request), expected) > 10 * LIMIT


def test_a_noise_predicting_model_is_sampled_from_its_own_schedule(models: dict[str, Compared]) -> None:
    model = models["sd1"]
    assert np.array_equal(model.ours(REQUEST, zero_terminal=True), model.ours(REQUEST))


def test_clip_skip_counts_layers_from_the_end(models: dict[str, Compared]) -> None:
    model = models["sd1"]
    encoder = model.public.text_encoder

    def states(prompt: str) -> Tensor:
        ids = model.public.tokenizer(
            prompt, padding="max_length", max_length=77, return_tensors="pt"
        ).input_ids
        with torch.no_grad():
            return encoder.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-2])

    texts = {"prompt": REQUEST.prompt, "negative_prompt": REQUEST.negative_prompt}
    embedded: dict[str, Any] = {f"{name}_embeds": states(text) for name, text in texts.items()}
    expected = model.theirs(REQUEST, **embedded, **dict.fromkeys(texts, NOTHING))
    made = model.ours(REQUEST, clip_skip=2)
    assert difference(made, expected) < LIMIT
    assert difference(made, model.ours(REQUEST)) > 10 * LIMIT


def test_emphasis_weighs_the_states_of_words(models: dict[str, Compared]) -> None:
    model = models["sd1"]
    plain, _ = model.public.encode_prompt(REQUEST.prompt, torch.device("cpu"), 1, False)
    weighted = plain.clone()
    weighted[:, 3] *= 1.5  # start, a, red, cat
    weighted *= plain.mean() / weighted.mean()
    expected = model.theirs(REQUEST, prompt=None, prompt_embeds=weighted)
    made = model.ours(replace(REQUEST, prompt="a red (cat:1.5), photo"))
    assert difference(made, expected) < LIMIT
    assert difference(made, model.ours(REQUEST)) > 10 * LIMIT


def test_the_size_of_the_image_is_told_to_models_that_listen(models: dict[str, Compared]) -> None:
    model = models["sdxl"]
    other: dict[str, Any] = {"original_size": (512, 512), "target_size": (512, 512)}
    assert difference(model.theirs(REQUEST, **other), model.ours(REQUEST)) > 3 * LIMIT
