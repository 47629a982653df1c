"""What each command does. Its modules are imported when it is run: `--help` and typos never pay for torch."""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

from sfumato.cli.product import show
from sfumato.cli.scripts import script_for
from sfumato.config.rules.strictness import is_strict
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.tools.adapter_merging import ToPublishedConfig
from sfumato.config.tools.importing import ImportingConfig
from sfumato.config.tools.pictures.captioning import (
    BlipConfig,
    CaptioningConfig,
    GitConfig,
    InstructedConfig,
    TaggingConfig,
)
from sfumato.config.tools.pictures.edges import EdgesConfig
from sfumato.config.tools.pictures.faces import FacesConfig
from sfumato.config.tools.preparation import BucketingConfig, CleaningConfig, GatheringConfig, ShrinkingConfig
from sfumato.config.tools.upscaling import UpscalingConfig
from sfumato.errors import UserError
from sfumato.models.registry.family_choice import FamilyChoice


@dataclass(frozen=True)
class Call:
    """Calls a function with the run.

    Attributes:
        module: where the function is; `sfumato.` is left out.
        section: what of the run the function takes, where that is not all of it.
        is_shown: print what the function returns.
    """

    module: str
    function: str
    section: type | None = None
    is_shown: bool = False

    def __call__(self, run: Run) -> int:
        """Import and call the function; return the exit status."""
        result = self.imported()(run if self.section is None else run[self.section])
        if self.is_shown:
            show(str(result))
        return 0

    def imported(self) -> Callable[..., object]:
        """Return the function."""
        return getattr(importlib.import_module(f"sfumato.{self.module}"), self.function)


def _train(run: Run) -> int:
    if run[DatasetConfig].debug_dataset:
        return _inspect(run)
    if run[NoiseConfig].show_timesteps:
        return _show_timesteps(run)
    from sfumato.training.run.setup import train  # torch starts here; --help and typos never pay for it

    train(run, signals=True)
    return 0


def _show_timesteps(run: Run) -> int:
    if _is_another_process():
        return 0
    from sfumato.models.registry.families import family_for
    from sfumato.training.trainables.timestep_histogram import timestep_histogram

    histogram = timestep_histogram(run, family_for(run))
    if run[NoiseConfig].show_timesteps == "image":
        from sfumato.training.trainables import timestep_image

        timestep_image.write(histogram, Path(run[SavingConfig].output_dir or "."))
    else:
        show(histogram.as_text())
    return 0


def _plan(run: Run) -> int:
    from sfumato.training.run.setup import count

    show(count(run).as_text())
    return 0


def _plan_as_json(run: Run) -> int:
    from sfumato.training.run.setup import count

    show(json.dumps(count(run).as_dict(), indent=1))
    return 0


def _generate(run: Run) -> int:
    from sfumato.cli.generate import main

    main(run, script_for("generate", run.family, "").part_dtypes)
    return 0


def _inspect(run: Run) -> int:
    if _is_another_process():
        return 0
    from sfumato.tools.inspection.command import inspect
    from sfumato.tools.inspection.text import as_text

    report = inspect(run)
    show(as_text(report))
    if is_strict(run) and report.num_serious and not run[DatasetConfig].debug_dataset:
        raise UserError(
            f"--strict: kinds of problems found: {report.num_serious}; without --strict that is no error"
        )
    return 0


def _is_another_process() -> bool:
    """Return whether another of several processes tells enough."""
    return os.environ.get("RANK", "0") not in ("", "0")


def _convert(run: Run) -> int:
    from sfumato.tools.converting.conversion import convert, convert_to_published

    (convert_to_published if ToPublishedConfig in run else convert)(run)
    return 0


def _cache_latents(run: Run) -> int:
    if run[DatasetConfig].debug_dataset:
        return _inspect(run)
    from sfumato.training.run.precaching import cache_latents

    cache_latents(run)
    return 0


def _cache_texts(run: Run) -> int:
    if "cache_text_encoder_outputs" not in script_for("train", run.family, "lora").options():
        choices = " or ".join(f"--{field.name}" for field in fields(FamilyChoice))
        raise UserError(f"training Stable Diffusion 1 or 2 keeps no captions; give {choices}")
    if run[DatasetConfig].debug_dataset:
        return _inspect(run)
    from sfumato.training.run.precaching import cache_texts

    cache_texts(run)
    return 0


def _prepare_buckets(run: Run) -> int:
    from sfumato.hub.access import access_for
    from sfumato.tools.preparation.bucketing import prepared
    from sfumato.training.run.precaching import cache_latents

    cache_latents(prepared(run[BucketingConfig], access_for(run)))
    return 0


def _gather(run: Run, kind: Literal["caption", "tags"]) -> int:
    from sfumato.tools.preparation.gathering import gather

    gather(run[GatheringConfig], kind)
    return 0


def _caption(run: Run) -> int:
    from sfumato.tools.captioning.describing import undone

    if run[CaptioningConfig].undo:
        show(undone(run[CaptioningConfig]))
        return 0
    describe = next(call for section, call in _CAPTIONERS.items() if section in run)
    return describe(run)


_CAPTIONERS: dict[type, Call] = {
    BlipConfig: Call("tools.captioning.sentences.blip", "caption_with_blip"),
    GitConfig: Call("tools.captioning.sentences.git", "caption_with_git"),
    InstructedConfig: Call("tools.captioning.sentences.instructed", "caption_as_told"),
    TaggingConfig: Call("tools.captioning.tags.tagging", "tag"),
}
"""What describes images, by the section that only its runs have."""


def _minimal_image(run: Run) -> int:
    from sfumato.cli.minimal import main

    main(run)
    return 0


WORK: dict[str, Callable[[Run], int]] = {
    "train": _train,
    "plan": _plan,
    "plan --json": _plan_as_json,
    "generate": _generate,
    "prompted images": Call("sampling.sd_scripts.command", "make_images"),
    "prompted images, seeds ahead": Call("sampling.sd_scripts.command", "make_images_as_before"),
    "minimal image": _minimal_image,
    "adapter views": Call("sampling.sd_scripts.adapter_views", "show_views"),
    "inspect": _inspect,
    "caption": _caption,
    "convert": _convert,
    "join-parts": Call("tools.converting.joining", "join_parts"),
    "show-metadata": Call("tools.inspection.metadata", "show_metadata", is_shown=True),
    "merge": Call("tools.merging.adapter_merging", "merge_adapters"),
    "merge-svd": Call("tools.merging.svd_merging", "svd_merge"),
    "merge-models": Call("tools.merging.merging", "merge_models"),
    "extract-lora": Call("tools.extracting.extraction", "extract"),
    "resize-lora": Call("tools.extracting.resizing", "resize"),
    "cache-latents": _cache_latents,
    "cache-text": _cache_texts,
    "resize-images": Call("tools.preparation.shrinking", "shrink", ShrinkingConfig),
    "upscale-images": Call("tools.preparation.upscaling", "upscale", UpscalingConfig),
    "mask": Call("tools.masking.masking", "make_masks"),
    "edges": Call("tools.preparation.edges", "draw_edges", EdgesConfig),
    "faces": Call("tools.faces.cutting", "cut_faces", FacesConfig),
    "merge-captions": partial(_gather, kind="caption"),
    "merge-tags": partial(_gather, kind="tags"),
    "clean-captions": Call("tools.preparation.cleaning", "clean", CleaningConfig),
    "prepare-buckets": _prepare_buckets,
    "import": Call("tools.importing.importing", "import_run", ImportingConfig, is_shown=True),
    "convert-lora": Call("tools.converting.adapter_names", "exchange"),
    "check-lora": Call("tools.inspection.adapter_check", "check_adapter", is_shown=True),
    "interrogate-lora": Call("tools.inspection.interrogation", "interrogate", is_shown=True),
    "extract-dylora": Call("tools.extracting.dylora", "split"),
}
"""By the names of commands; a row of the table of scripts says which command it is."""
