"""Options that change nothing for the model at hand, which only its file tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from sfumato.adapters.sd_scripts.network_modules import is_own
from sfumato.config.run.image_scripts.networks import ImageNetworkConfig
from sfumato.config.run.image_scripts.sizes import SizeConfig
from sfumato.config.run.image_scripts.speed import SpeedConfig
from sfumato.config.run.image_scripts.start_images import StartImageConfig
from sfumato.config.run.image_scripts.steps import StepConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import Family, Prediction, is_told_sizes

_SIDES = ("H", "W")
"""Sizes that say something to every model."""


def idle_here(run: Run, family: Family) -> Iterator[str]:
    """Yield a line for each group of options without effect."""
    size = run[SizeConfig]
    told = [field.name for field in fields(size) if field.name not in _SIDES]
    given = [f"--{name}" for name in told if getattr(size, name) is not None]
    if given and not is_told_sizes(family):
        yield f"{', '.join(given)} without effect here: this model is told no sizes"
    yield from _beyond_networks(
        run[ImageNetworkConfig], is_regional=run[StartImageConfig].mask_path is not None
    )
    if (run[SpeedConfig].vae_slices or 0) > 2:
        yield "--vae_slices decodes tiles; its number has no effect here: the autoencoder tells their size"
    if run[StepConfig].zero_terminal_snr and family.prediction is Prediction.EPSILON:
        yield "--zero_terminal_snr has no effect here: this model predicts noise, which says nothing there"


def _beyond_networks(config: ImageNetworkConfig, *, is_regional: bool) -> Iterator[str]:
    """Yield lines for strengths and arguments without a network, and for networks without a region."""
    modules = config.network_module or ()
    for name, given in (("network_mul", config.network_mul), ("network_args", config.network_args)):
        if modules and len(given or ()) > len(modules):
            yield f"--{name} has no effect from number {len(modules) + 1} on, for want of networks"
    for module in modules:
        if is_regional and not is_own(module):
            yield f"--mask_path has no effect here on --network_module {module}: it acts everywhere"
