"""What the command line says of every image, before a prompt line says otherwise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sfumato.config.run.image_scripts.hires import HighresFixConfig
from sfumato.config.run.image_scripts.networks import ImageNetworkConfig
from sfumato.config.run.image_scripts.sizes import SizeConfig
from sfumato.config.run.image_scripts.small_latents import SmallLatentsConfig
from sfumato.config.run.image_scripts.start_images import StartImageConfig
from sfumato.config.run.image_scripts.steps import StepConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.sampling.prompts.image_options import parse_unsharp
from sfumato.sampling.request import STRENGTH, Request
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent
from sfumato.sampling.settings.hires import Hires
from sfumato.sampling.settings.regions import Regions
from sfumato.sampling.settings.sizes import SizeConditions


@dataclass(frozen=True)
class LineDefaults:
    """What prompt lines leave open.

    Attributes:
        request: of an image whose line says nothing.
        deep_shrink, gradual_latent: what the options of these complete in a line that has any.
    """

    request: Request
    deep_shrink: DeepShrink
    gradual_latent: GradualLatent


def defaults_of(run: Run, resolution: tuple[int, int]) -> LineDefaults:
    """Return what a run's options say of its images.

    Args:
        resolution: width and height that suit the model.

    Raises:
        UserError: a value cannot be read, or is out of range.
    """
    size, steps, small = run[SizeConfig], run[StepConfig], run[SmallLatentsConfig]
    shrink, gradual = _deep_shrink(small), _gradual_latent(small)
    request = Request(
        "",
        width=size.W or resolution[0],
        height=size.H or resolution[1],
        steps=steps.steps,
        cfg_scale=steps.scale,
        negative_scale=steps.negative_scale,
        sampler=steps.sampler.removeprefix("k_"),
        strength=_strength(run[StartImageConfig]),
        sizes=_sizes(size),
        multipliers=multipliers_of(run[ImageNetworkConfig]),
        deep_shrink=shrink if small.ds_depth_1 is not None else None,
        gradual_latent=gradual if small.gradual_latent_timesteps is not None else None,
        hires=_hires(run[HighresFixConfig]),
        regions=_regions(run),
    )
    return LineDefaults(request, shrink, gradual)


def multipliers_of(config: ImageNetworkConfig) -> tuple[float, ...]:
    """Return the strength of each network; those that are not given are 1."""
    given, number = config.network_mul or (), len(config.network_module or ())
    return (*given, *[1.0] * number)[:number]


def _strength(config: StartImageConfig) -> float:
    return STRENGTH if config.strength is None else config.strength


def _sizes(config: SizeConfig) -> SizeConditions | None:
    sizes = SizeConditions(
        original_width=config.original_width,
        original_height=config.original_height,
        original_width_negative=config.original_width_negative,
        original_height_negative=config.original_height_negative,
        crop_top=config.crop_top,
        crop_left=config.crop_left,
    )
    return None if sizes == SizeConditions() else sizes


def _deep_shrink(config: SmallLatentsConfig) -> DeepShrink:
    shrink = DeepShrink(
        timesteps_1=config.ds_timesteps_1,
        depth_2=config.ds_depth_2,
        timesteps_2=config.ds_timesteps_2,
        ratio=config.ds_ratio,
    )
    return shrink if config.ds_depth_1 is None else replace(shrink, depth_1=config.ds_depth_1)


def _gradual_latent(config: SmallLatentsConfig) -> GradualLatent:
    text = config.gradual_latent_unsharp_params
    try:
        unsharp = parse_unsharp(text) if text else None
    except ValueError:
        raise UserError(
            f"--gradual_latent_unsharp_params is {text!r}; write kernel,sigma,strength as 3,0.5,0.5"
        ) from None
    gradual = GradualLatent(
        ratio=config.gradual_latent_ratio,
        every_n_steps=config.gradual_latent_every_n_steps,
        ratio_step=config.gradual_latent_ratio_step,
        s_noise=config.gradual_latent_s_noise,
        unsharp=unsharp,
    )
    start = config.gradual_latent_timesteps
    return gradual if start is None else replace(gradual, timesteps=start)


def _hires(config: HighresFixConfig) -> Hires | None:
    if config.highres_fix_scale is None:
        return None
    return Hires(
        config.highres_fix_scale, config.highres_fix_steps, config.highres_fix_strength, upscaler_of(config)
    )


def upscaler_of(config: HighresFixConfig) -> str:
    """Return the name of what enlarges a first stage; a module of somebody else's has its own."""
    if config.highres_fix_upscaler:
        return config.highres_fix_upscaler
    return "latent" if config.highres_fix_latents_upscaling else "lanczos"


def _regions(run: Run) -> Regions | None:
    """Return where networks act: a mask is one of regions if there are any networks."""
    mask, networks = run[StartImageConfig].mask_path, run[ImageNetworkConfig]
    if mask is None or not networks.network_module:
        return None
    return Regions(mask, networks.network_regional_mask_max_color_codes)
