"""The networks of a run: files of our own kinds of adapters, and modules of somebody else's."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sfumato.adapters.network.network import Network
from sfumato.adapters.sd_scripts.network_modules import is_own, resolve
from sfumato.adapters.words.vocabulary import LearnedWord
from sfumato.checkpoints.tensors import open_tensors
from sfumato.config.run.image_scripts.networks import ImageNetworkConfig
from sfumato.config.run.image_scripts.start_images import StartImageConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.parts import Parts
from sfumato.sampling.loaded_adapters import AdapterFile, Attachments
from sfumato.sampling.sd_scripts.line_defaults import multipliers_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AskedNetwork:
    """One network of the command line.

    Attributes:
        arguments: those of `--network_args` for it, each as `key=value`.
        is_merged: written into the model for good; others' modules act beside it.
    """

    module: str
    file: AdapterFile
    arguments: tuple[str, ...] = ()
    is_merged: bool = False

    @property
    def is_own(self) -> bool:
        """Whether its file is read as one of our adapters; LyCORIS' kinds are among these."""
        return is_own(self.module)


def networks_of(run: Run) -> list[AskedNetwork]:
    """Return the networks of a run.

    Raises:
        UserError: a file is missing.
    """
    config = run[ImageNetworkConfig]
    allow_partial = run.get(PartialUseConfig, PartialUseConfig()).allow_partial
    modules, files = config.network_module or (), config.network_weights or ()
    texts = (*(config.network_args or ()), *[""] * len(modules))
    num_merged = len(modules) if config.network_merge else config.network_merge_n_models or 0
    return [
        AskedNetwork(
            module,
            AdapterFile(_existing(file), strength, allow_partial),
            tuple(text for text in arguments.split(";") if text.strip()),
            is_merged=number < num_merged and is_own(module),
        )
        for number, (module, file, strength, arguments) in enumerate(
            zip(modules, files, multipliers_of(config), texts, strict=False)
        )
    ]


def _existing(file: str) -> Path:
    if not Path(file).exists():
        raise UserError(f"--network_weights {file}: there is no such file; check the path")
    return Path(file)


class NetworkSet:
    """Networks at work on a model, in the order of the command line.

    Args:
        run: with the options of networks.
        dtype: of networks that act beside the model.

    Raises:
        UserError: a file is broken, or a module knows nothing of what it is told.
    """

    def __init__(
        self, run: Run, family: Family, asked: Sequence[AskedNetwork], *, dtype: torch.dtype
    ) -> None:
        self._family = family
        self._asked = asked
        self._run = run
        config = run[ImageNetworkConfig]
        merged, live = self._own_files(is_merged=True), self._own_files(is_merged=False)
        again = config.network_pre_calc and not run[StartImageConfig].mask_path
        self._merged = Attachments(family, merged, dtype=dtype, is_merged=True)
        self._live = Attachments(family, live, dtype=dtype, is_merged=again, is_reversible=again)
        self._foreign: dict[int, Network] = {}
        for network in asked:
            self._tell(network, has_metadata=config.network_show_meta)

    def check(self) -> None:
        """Raise UserError unless the networks fit the model, of which no weight is loaded for it."""
        self._merged.check()
        self._live.check()

    def __call__(self, part: str, module: nn.Module) -> None:
        """Let networks of our own act on a part that has just been loaded."""
        self._merged(part, module)
        self._live(part, module)

    @property
    def live(self) -> Attachments:
        """Our own networks that act beside the model, as regions need them."""
        return self._live

    @property
    def words(self) -> list[LearnedWord]:
        """New words that came with files of our own kinds."""
        return [*self._merged.words, *self._live.words]

    @property
    def has_foreign(self) -> bool:
        """Whether some are somebody else's, and wait for `apply_foreign`."""
        return not all(network.is_own for network in self._asked)

    def apply_foreign(self, parts: Parts) -> None:
        """Build the networks of others' modules on a model all of whose parts are loaded."""
        models = {part: parts[part] for part in (*self._family.text_outputs, DENOISER)}
        for number, network in enumerate(self._asked):
            if not network.is_own:
                built = resolve(self._naming(network)).build(self._family, models)
                built.trainable.eval().requires_grad_(False).to(parts.device)
                self._foreign[number] = built

    def set_strengths(self, strengths: Sequence[float] | None) -> None:
        """Set how strongly each network acts from now on; None is as the command line says.

        Raises:
            UserError: one that is merged for good is to act otherwise.
        """
        own = [network.file.strength for network in self._asked]
        chosen = list(own if strengths is None else strengths)
        for network, strength in zip(self._asked, chosen, strict=True):
            if network.is_merged and strength != network.file.strength:
                raise UserError(f"prompt option --am changes {network.file.path.name}, which is merged")
        live = [not network.is_merged and network.is_own for network in self._asked]
        self._live.set_strengths([s for s, is_live in zip(chosen, live, strict=True) if is_live])
        for number, built in self._foreign.items():
            built.set_strength(chosen[number])

    def names(self) -> list[str]:
        """Return the files with the strengths of the command line."""
        return [f"{network.file.path.name};{network.file.strength:g}" for network in self._asked]

    def _own_files(self, *, is_merged: bool) -> list[AdapterFile]:
        return [network.file for network in self._asked if network.is_own and network.is_merged == is_merged]

    def _tell(self, network: AskedNetwork, *, has_metadata: bool) -> None:
        """Check what a network is told, and show what its file says of itself."""
        if network.arguments:
            resolve(self._naming(network))
            if network.is_own:
                logger.warning("--network_args %s has no effect: the file tells", ";".join(network.arguments))
        if has_metadata:
            with open_tensors(network.file.path) as file:
                for name, text in file.metadata.items():
                    logger.info("%s: %s = %s", network.file.path.name, name, text)

    def _naming(self, network: AskedNetwork) -> Run:
        """Return a run that asks for one network as trainers do."""
        config = NetworkConfig(
            network_module=network.module,
            network_weights=str(network.file.path),
            dim_from_weights=True,
            network_args=network.arguments,
        )
        return self._run.with_sections(config)
