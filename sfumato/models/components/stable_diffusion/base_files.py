"""Where a base model of Stable Diffusion lies on this machine, once it was fetched if need be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sfumato.config.run.model.control_networks import ControlNetConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.hub.access import HubAccess
from sfumato.hub.fetching import located
from sfumato.models.components import hub_files
from sfumato.models.components.controlnet import control_kinds
from sfumato.models.components.stable_diffusion.checkpoint import OPTION, Layout
from sfumato.models.components.stable_diffusion.clip import TokenizerSource
from sfumato.models.interface.family import DENOISER, VAE


def control_file(run: Run, access: HubAccess) -> Path | None:
    """Return the file or folder of the ControlNet that a run goes on from, if it names one.

    Raises:
        UserError: it cannot be fetched.
    """
    name = run.get(ControlNetConfig, ControlNetConfig()).controlnet_model_name_or_path
    return located(name, f"--{control_kinds.OPTION}", access=access)


class BaseFiles(NamedTuple):
    """Paths of the base and of an autoencoder of its own, where they are given."""

    base: Path | None
    vae: Path | None


def base_files(
    model: ModelConfig,
    layout: Layout,
    tokenizers: Iterable[TokenizerSource],
    access: HubAccess,
    remedy: str = "",
) -> BaseFiles:
    """Return the files that options name.

    Args:
        remedy: what else to do where the model is another kind, for messages.

    Raises:
        UserError: a model cannot be fetched, or is another kind.
    """
    used = [part for part in layout.parts if part != DENOISER and not (part == VAE and model.vae)]
    wanted = hub_files.whole_model(
        [layout.parts[part].folder for part in (DENOISER, *used)],
        [source.folder for source in tokenizers],
        {layout.kind, *layout.unet_kinds},
        f"{layout.what}{remedy}",
    )
    base = located(model.pretrained_model_name_or_path, f"--{OPTION}", wanted, access)
    return BaseFiles(base, located(model.vae, "--vae", hub_files.autoencoder(), access))
