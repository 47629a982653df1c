"""What an adapter changes, in four images: without it, with it, with it taken off again, and merged."""

from __future__ import annotations

import logging
from pathlib import Path

from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.image_scripts.minimal import AdapterViewConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.registry.families import family_for
from sfumato.sampling.generator import Generator
from sfumato.sampling.loaded_adapters import parse_adapter
from sfumato.sampling.output.image_files import write_image
from sfumato.sampling.sd_scripts.model_file import with_model_of

logger = logging.getLogger(__name__)

_OPTION = "--model_id"
_LIVE = (("original", [0.0]), ("applied_lora", None), ("unapplied_lora", [0.0]))
"""Names of images, and the strength of the adapter beside the model; None is that of the command line."""


def show_views(run: Run) -> None:
    """Write the images into the folder in which the program runs, named after the model.

    Raises:
        UserError: a file is missing, broken, or for another model.
    """
    config = run[AdapterViewConfig]
    if not config.model_id or not config.lora_weights:
        raise UserError(f"{_OPTION} and --lora_weights must be given: a model, and an adapter for it")
    allow_partial = run.get(PartialUseConfig, PartialUseConfig()).allow_partial
    adapters = [parse_adapter(config.lora_weights, allow_partial=allow_partial)]
    family = family_for(with_model_of(run, config.model_id, _OPTION))
    try_folder(Path(), "run it in another folder")
    live = Generator(family, adapters=adapters)
    request = live.request(config.prompt, negative_prompt=config.negative_prompt, seed=config.seed)
    stem = config.model_id.replace("/", "_")
    for name, strength in _LIVE:
        live.adapters.set_strengths(strength)
        written = write_image(live.pipeline(request), Path(f"{stem}_{name}.png"), request)
        logger.info("wrote %s", written)
    merged = Generator(family, adapters=adapters, is_merged=True)
    logger.info("wrote %s", write_image(merged.pipeline(request), Path(f"{stem}_merged_lora.png"), request))
