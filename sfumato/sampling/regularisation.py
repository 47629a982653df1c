"""Regularisation images that the base makes: what it shows for a class before anything is trained."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.batches import dataset
from sfumato.data.batches.regularisation import MissingImages, missing_images
from sfumato.data.captions import variants
from sfumato.data.config import blueprint
from sfumato.data.config.plan import SubsetPlan
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.interface.family import Family
from sfumato.sampling.prompts.prompt_options import PromptOptions
from sfumato.sampling.request import Request
from sfumato.sampling.session import SamplingSession

logger = logging.getLogger(__name__)

_NAME = re.compile(r"regularisation-(\d+)\.png")


def make_missing(session: SamplingSession, run: Run) -> None:
    """Make the images that the data set of `--for_regularisation` lacks, each into the folder of its subset.

    Image `n` of a folder is `regularisation-<n>.png` and has the seed of the run plus n, so that a call which
    was stopped is continued by the next one with the images that it would have made.

    Raises:
        UserError: the data set cannot be read, has no regularisation images or a class without a name.
    """
    wanted: dict[Path, Request] = {}
    for lack in _missing(run, session.family):
        wanted |= _requests(lack, session, wanted)
    if wanted:
        session.write_all(wanted)
    else:
        logger.info("the data set has as many regularisation images as it needs")


def _missing(run: Run, family: Family) -> list[MissingImages]:
    multiple = family.latents.downscale * family.latents.patch
    plans = blueprint.plans(_with_data(run), size_multiple=multiple)
    if not any(subset.is_reg for plan in plans for subset in plan.subsets):
        (file,) = run[GenerationConfig].for_regularisation  # two folders always have such subsets
        raise UserError(
            f"--for_regularisation {file} describes no regularisation images; add a subset with "
            "is_reg = true and class_tokens"
        )
    return missing_images(dataset.read(plans, seed=0).sets)


def _with_data(run: Run) -> Run:
    """Return the run with the sections of a training run that describe its data."""
    settings = run[GenerationConfig]
    named = settings.for_regularisation
    if len(named) == 1:
        data = DatasetConfig(dataset_config=Path(named[0]))
    else:
        data = DatasetConfig(train_data_dir=named[0], reg_data_dir=named[1])
    images = ImageConfig(resolution=f"{settings.width},{settings.height}")
    return run.with_sections(data, images, CaptionConfig(), LossConfig())


def _requests(lack: MissingImages, session: SamplingSession, others: Iterable[Path]) -> dict[Path, Request]:
    """Return what to make for a subset, by the paths of the files; `others` will be made, too."""
    folder, (width, height) = lack.subset.source, lack.size
    prompt = class_prompt(lack.subset)
    try_folder(folder, "choose another image_dir")
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("%s of '%s' for %s", counted(lack.number, "regularisation image"), prompt, folder)
    base = session.request(PromptOptions(prompt, width=width, height=height, seed=session.settings.seed or 0))
    first = 1 + _last_number([*os.listdir(folder), *(path.name for path in others if path.parent == folder)])
    return {
        folder / f"regularisation-{number:06d}.png": replace(base, seed=base.seed + number)
        for number in range(first, first + lack.number)
    }


def class_prompt(subset: SubsetPlan) -> str:
    """Return the caption that images of the class have in training.

    Raises:
        UserError: there are no class tokens, or they stand for several captions.
    """
    if not subset.class_tokens:
        raise UserError(f"{subset.source} has no class_tokens; say what its regularisation images show")
    steady = replace(
        subset.captions,
        shuffle_caption=False,
        token_warmup_step=0,
        caption_dropout_rate=0,
        caption_dropout_every_n_epochs=0,
        caption_tag_dropout_rate=0,
    )
    found = variants.listed(subset.class_tokens, steady)
    if found is None or len(found) > 1:
        raise UserError(
            f"class_tokens of {subset.source} are '{subset.class_tokens}'; regularisation images have one "
            "caption: write it without {a|b}"
        )
    return found[0]


def _last_number(names: Sequence[str]) -> int:
    return max((int(match[1]) for name in names if (match := _NAME.fullmatch(name))), default=0)
