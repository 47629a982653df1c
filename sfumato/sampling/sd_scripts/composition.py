"""What gen_img's options put together for the pipeline: samplers, upscalers, words, effects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sfumato.adapters.words.vocabulary import LearnedWord, learned_word
from sfumato.config.run.image_scripts.hires import HighresFixConfig
from sfumato.config.run.image_scripts.steps import StartNoiseConfig, StepConfig
from sfumato.config.run.image_scripts.texts import EmbeddingConfig
from sfumato.config.run.run import Run
from sfumato.diffusion import samplers, schedules
from sfumato.diffusion.samplers import Denoise, Rng, Steps
from sfumato.diffusion.starts import exact_start
from sfumato.errors import UserError
from sfumato.models.interface.family import Family
from sfumato.sampling.effects.start_noise import StartNoise, start_noise
from sfumato.sampling.hires.upscaler_modules import upscaler_from
from sfumato.sampling.hires.upscaling import UPSCALERS, Upscale
from sfumato.sampling.plan import Effect
from sfumato.sampling.request import Request
from sfumato.sampling.sampler_names import EARLIER, SamplerChoice

_DRAWS_TWICE = "dpm_2_a"
"""For each of its steps gen_img draws two noises, and uses the second."""


def samplers_for(steps: StepConfig) -> Mapping[str, SamplerChoice]:
    """Return the samplers as gen_img has them."""
    found = {**EARLIER, _DRAWS_TWICE: replace(EARLIER[_DRAWS_TWICE], sampler=_dpm_2_ancestral)}
    if steps.force_scheduler_zero_steps_offset:
        found = {name: _without_offset(choice) for name, choice in found.items()}
    return found


def num_step_draws(request: Request) -> int:
    """Return how many noises gen_img draws for an image's steps, whether its sampler needs them or not."""
    return request.steps * (2 if request.sampler == _DRAWS_TWICE else 1)


def upscalers_for(config: HighresFixConfig) -> Mapping[str, Upscale]:
    """Return what enlarges first stages, with the module that the user names.

    Raises:
        UserError: the module cannot be imported, or makes no upscaler.
    """
    name = config.highres_fix_upscaler
    if config.highres_fix_scale is None or not name:
        return UPSCALERS
    arguments = _arguments(config.highres_fix_upscaler_args or "")
    return {**UPSCALERS, name: upscaler_from(name, arguments, "--highres_fix_upscaler")}


def words_of(run: Run, family: Family) -> list[LearnedWord]:
    """Return the learned words that a run names.

    Raises:
        UserError: a file is missing or damaged, or the model cannot be given words.
    """
    config = run[EmbeddingConfig]
    files = (*(config.textual_inversion_embeddings or ()), *(config.XTI_embeddings or ()))
    return [learned_word(Path(file), family) for file in files]


def effects_of(run: Run) -> list[Effect]:
    """Return the effects that act on all images of a run."""
    config = run.get(StartNoiseConfig, StartNoiseConfig())
    settings = StartNoise(
        config.pyramid_noise_prob or 0.0,
        _range(config.pyramid_noise_discount_range),
        config.noise_offset_prob or 0.0,
        _range(config.noise_offset_range),
    )
    return [] if settings == StartNoise() else [start_noise(settings)]


@samplers.sampler
def _dpm_2_ancestral(denoise: Denoise, x: Tensor, levels: list[float], rng: Rng) -> Steps:
    """Draw one more noise before each step."""
    for level, following in pairwise(levels):
        samplers.noisier(x, 1.0, rng)
        step = torch.tensor([level, following], dtype=torch.float64)
        x = yield samplers.dpm_2_ancestral(denoise, x, step, rng), following


def _arguments(text: str) -> dict[str, str]:
    pairs = [piece.partition("=") for piece in text.split(";") if piece.strip()]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise UserError(f"--highres_fix_upscaler_args {wrong[0]}: write it as key=value")
    return {name.strip(): value.strip() for name, _, value in pairs}


def _without_offset(choice: SamplerChoice) -> SamplerChoice:
    """Let timesteps be counted from 0, and an image be noised to the level of the first step."""
    is_counted = choice.spacing is schedules.leading_timesteps
    return replace(choice, entry=exact_start, spacing=_counted_from_0 if is_counted else choice.spacing)


def _counted_from_0(num_steps: int) -> Tensor:
    return schedules.leading_timesteps(num_steps) - 1


def _range(given: tuple[float, ...] | None) -> tuple[float, float]:
    return (given[0], given[1]) if given else (0.0, 0.0)
