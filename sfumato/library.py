"""The program from Python: train, and make images, with the options that the command line has.

Nothing here sets up logging, listens to signals or ends the process, and what is global in Python and PyTorch
is afterwards as it was: random generators, the default dtype, the number of threads.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sfumato.cli.options.parse import parse
from sfumato.cli.requirements import check_requirements
from sfumato.cli.scripts import script_for, script_named
from sfumato.cli.start import completed
from sfumato.config.rules.evaluation import check_conflicts
from sfumato.config.rules.tables import rules_for
from sfumato.config.run.composition import CompositionConfig
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.image_series import ImageSeriesConfig
from sfumato.config.run.run import Run
from sfumato.config.scripts.script import Script
from sfumato.config.tools.report import ReportConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.collate import Batch
from sfumato.data.batches.dataset import TrainingSet
from sfumato.data.batches.loader import Loader
from sfumato.data.config import blueprint
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER
from sfumato.models.registry.families import family_for
from sfumato.nn.device import default_device
from sfumato.sampling.generator import Generator
from sfumato.sampling.loaded_adapters import AdapterFile
from sfumato.sampling.session import formats_of
from sfumato.training.core.observer import Observer
from sfumato.training.run import setup

_OF_THE_MODEL = ("dtype", "offload", "merge_lora_weights", "vae_tiling", "vae_batch_size")
"""Options of the command line's images that are about the model."""

_OF_THE_COMMAND = {
    *("output_config", "debug_dataset", "show_timesteps", "show_timesteps_resolution"),
    *("console_log_level", "console_log_file", "console_log_simple"),
}
"""Options that make a command do something else, or set up logging."""


def train(family: str, method: str, observers: Sequence[Observer] = (), **options: Any) -> Path | None:
    """Train, in any thread, and return the file or folder of the last weights that were saved.

    In a run of several processes the first one saves; the others return None.

    Args:
        family: "sd", "sdxl", "flux", or that of an installed package.
        method: "lora", "full" ...: what `sfumato train FAMILY` trains.
        observers: watch the run, and may end it early; see docs/observers.md.
        options: those of `sfumato train FAMILY METHOD`, without dashes. Lists stand for several values, True
            for a switch; None and False leave an option out.

    Raises:
        UserError: something is wrong that the caller can mend; mostly before any weight is loaded.
    """
    run = _run(script_for("train", family, method), options)
    with _as_before():
        saved = setup.train(run, observers, bar=False)
    return saved[-1] if saved else None


def load(
    family: str,
    model: str | Path,
    *,
    adapters: Mapping[str | Path, float] | None = None,
    device: str | torch.device | None = None,
    **options: Any,
) -> Generator:
    """Return what makes images with a model; its parts are loaded when the first image needs them.

    Args:
        family: "sd", "sdxl", "flux", or that of an installed package.
        model: its file or folder; of FLUX.1 that of the denoiser.
        adapters: files of adapters with the strengths at which they act.
        device: "cuda", "cpu" ...; the fastest of this machine where None.
        options: those of `sfumato generate FAMILY` that are about the model: `dtype`, `vae`, `clip_l` ...

    Raises:
        UserError: a file is missing, broken or for another model, or an option is wrong.
    """
    script = script_for("generate", family, "")
    sections = (GenerationConfig, CompositionConfig, ImageSeriesConfig)
    names = {field.name for section in sections for field in fields(section)} - {*_OF_THE_MODEL}
    if strangers := names & options.keys():
        raise UserError(f"{', '.join(sorted(strangers))}: give it with the prompt, not with the model")
    option = script.files.get(DENOISER, "pretrained_model_name_or_path")
    run = _run(script, {option: str(model), **options})
    bound, place = family_for(run), torch.device(device) if device else default_device()
    settings = run[GenerationConfig]
    return Generator(
        bound,
        adapters=[AdapterFile(Path(path), strength) for path, strength in (adapters or {}).items()],
        device=place,
        formats=formats_of(run, script.part_dtypes, bound, place),
        offload=settings.offload,
        is_merged=settings.merge_lora_weights,
        vae_batch_size=run[ImageSeriesConfig].vae_batch_size,
        vae_tiling=run[ImageSeriesConfig].vae_tiling,
    )


def read_dataset(
    *, seed: int = 0, size_multiple: int = 8, epochs: int = 1, num_workers: int = 0, **options: Any
) -> Iterator[Batch]:
    """Read a data set and yield its batches, as a training of that seed takes them without caches.

    Args:
        size_multiple: in pixels, of which image sides are multiples: 8 for Stable Diffusion, 16 for FLUX.1.
        epochs: how often all is shown, each time in another order.
        num_workers: processes that load; 0 loads in this one.
        options: about data, as `sfumato train` has them: `train_data_dir`, `dataset_config`, `resolution` ...

    Raises:
        UserError: there is no data, or its description is wrong.
    """
    script = script_named("inspect")
    if strangers := {field.name for field in fields(ReportConfig)} & options.keys():
        raise UserError(f"{', '.join(sorted(strangers))}: that is about a report; leave it out")
    run = _run(script, options)
    images = dataset.read(blueprint.plans(run, size_multiple=size_multiple, seed=seed), seed)
    return _batches(images, Loader(images, num_workers=num_workers), epochs)


def _batches(images: TrainingSet, loader: Loader, epochs: int) -> Iterator[Batch]:
    for epoch in range(1, epochs + 1):
        yield from loader(images.batches(epoch))


def _run(script: Script, options: Mapping[str, Any]) -> Run:
    """Return the run that options ask for, checked like a command line."""
    if strangers := _OF_THE_COMMAND & options.keys():
        raise UserError(f"{', '.join(sorted(strangers))}: that is for the command line; leave it out")
    parsed = parse(script, list(_arguments(options)), prog=f"sfumato {script.command}", as_command=True)
    check_conflicts(parsed.run, rules_for(parsed.script))
    check_requirements()
    return completed(parsed)


def _arguments(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if value is None or value is False:
            continue
        if isinstance(value, list | tuple):
            yield from (f"--{name}", *map(str, value))
        else:
            yield f"--{name}" if value is True else f"--{name}={value}"


@contextmanager
def _as_before() -> Iterator[None]:
    """Put back what is global in Python, NumPy and PyTorch."""
    drawn, numbers = random.getstate(), np.random.get_state()
    dtype, num_threads = torch.get_default_dtype(), torch.get_num_threads()
    try:
        with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
            yield
    finally:
        random.setstate(drawn)
        np.random.set_state(numbers)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(num_threads)
