"""The short scripts that make an image: the same as `sfumato generate`, under names of their own."""

from __future__ import annotations

from sfumato.cli import generate
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.image_scripts.minimal import MinimalConfig
from sfumato.config.run.run import Run

_OPTION = "--ckpt_path"


def main(run: Run) -> None:
    """Make the image that a run asks for, with whatever model its file holds.

    Raises:
        UserError: a file or an option will not do.
    """
    from sfumato.sampling.sd_scripts.model_file import with_model_of

    config = run[MinimalConfig]
    assert config.ckpt_path is not None  # which the option requires
    generate.main(with_model_of(run, config.ckpt_path, _OPTION).with_sections(_generation(config)))


def _generation(config: MinimalConfig) -> GenerationConfig:
    return GenerationConfig(
        prompt=config.prompt,
        negative_prompt=config.negative_prompt,
        width=config.width,
        height=config.height,
        steps=config.steps,
        cfg_scale=config.guidance_scale,
        seed=config.seed,
        output_dir=config.output_dir,
        lora_weights=config.lora_weights,
        image=config.image,
        mask=config.mask,
        interactive=config.interactive,
    )
