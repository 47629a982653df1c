"""What every run does between its command line and its work."""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence

from sfumato.cli.parse import Parsed, parse, write_config
from sfumato.cli.requirements import check_requirements
from sfumato.cli.runs import script_for
from sfumato.cli.script import Script
from sfumato.config.adapter_merging import ToPublishedConfig
from sfumato.config.conflicts import check_conflicts
from sfumato.config.console import ConsoleConfig
from sfumato.config.dataset import DatasetConfig
from sfumato.config.file import FileConfig
from sfumato.config.implied import imply
from sfumato.config.preparation import BucketingConfig, CleaningConfig, GatheringConfig, ShrinkingConfig
from sfumato.config.public import public_values, to_toml
from sfumato.config.run import Run
from sfumato.errors import UserError

logger = logging.getLogger(__name__)


def start(script: Script, argv: Sequence[str], *, prog: str, as_command: bool = False, work: str = "") -> int:
    """Parse the options of one script, say what will be done, and do it; return the exit status.

    Args:
        work: what to do instead of what the script's command is.
    """
    parsed = parse(script, argv, prog=prog, as_command=as_command)
    if parsed.output_config:
        return write_config(parsed.output_config, parsed.run)
    check_conflicts(parsed.run)
    check_requirements()
    run = _announce(parsed)
    return _WORK[work or script.command](run)


def _announce(parsed: Parsed) -> Run:
    """Set up logging, then log once what the user should know; return the run with what it implies."""
    from sfumato.log import set_up

    console = parsed.run[ConsoleConfig]
    set_up(console.console_log_level, console.console_log_file)
    for warning in parsed.warnings:
        logger.warning(warning)
    run, implied = imply(parsed.run)
    for message in implied:
        logger.info(message)
    settings = to_toml(public_values(run)).rstrip() or "nothing"
    logger.info("%s, what differs from its defaults:\n%s", run.script, settings)
    return run


def _train(run: Run) -> int:
    if run[DatasetConfig].debug_dataset:
        return _inspect(run)
    from sfumato.training.setup import train  # torch starts here; --help and typos never pay for it

    train(run)
    return 0


def _account(run: Run) -> int:
    from sfumato.training.setup import count

    print(count(run).as_text())  # noqa: T201
    return 0


def _account_as_json(run: Run) -> int:
    from sfumato.training.setup import count

    print(json.dumps(count(run).as_dict(), indent=1))  # noqa: T201
    return 0


def _generate(run: Run) -> int:
    from sfumato.cli.generate import main as generate

    generate(run)
    return 0


def _inspect(run: Run) -> int:
    if os.environ.get("RANK", "0") not in ("", "0"):
        return 0  # one of several processes tells enough
    from sfumato.tools.inspection.command import inspect
    from sfumato.tools.inspection.text import as_text

    report = inspect(run)
    _show(as_text(report))
    if run[FileConfig].strict and report.num_serious and not run[DatasetConfig].debug_dataset:
        raise UserError(
            f"--strict: kinds of problems found: {report.num_serious}; without --strict that is no error"
        )
    return 0


def _show(text: str) -> None:
    """Print a text with any characters; those that the terminal does not have become their numbers."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))  # noqa: T201


def _convert(run: Run) -> int:
    from sfumato.tools.conversion import convert, convert_to_published

    (convert_to_published if ToPublishedConfig in run else convert)(run)
    return 0


def _show_metadata(run: Run) -> int:
    from sfumato.tools.metadata import show_metadata

    print(show_metadata(run))  # noqa: T201
    return 0


def _check_lora(run: Run) -> int:
    from sfumato.tools.checking import check_adapter

    print(check_adapter(run))  # noqa: T201
    return 0


def _interrogate_lora(run: Run) -> int:
    from sfumato.tools.interrogation import interrogate

    _show(interrogate(run))
    return 0


def _merge_models(run: Run) -> int:
    from sfumato.tools.merging import merge_models

    merge_models(run)
    return 0


def _extract_lora(run: Run) -> int:
    from sfumato.tools.extraction import extract

    extract(run)
    return 0


def _resize_lora(run: Run) -> int:
    from sfumato.tools.resizing import resize

    resize(run)
    return 0


def _cache_latents(run: Run) -> int:
    if run[DatasetConfig].debug_dataset:
        return _inspect(run)
    from sfumato.training.precaching import cache_latents

    cache_latents(run)
    return 0


def _cache_texts(run: Run) -> int:
    if "cache_text_encoder_outputs" not in script_for("train", run.family, "lora").options():
        raise UserError("training Stable Diffusion 1 or 2 keeps no captions; give --sdxl or --flux")
    if run[DatasetConfig].debug_dataset:
        return _inspect(run)
    from sfumato.training.precaching import cache_texts

    cache_texts(run)
    return 0


def _resize_images(run: Run) -> int:
    from sfumato.tools.preparation.shrinking import shrink

    shrink(run[ShrinkingConfig])
    return 0


def _merge_captions(run: Run) -> int:
    from sfumato.tools.preparation.gathering import gather

    gather(run[GatheringConfig], "caption")
    return 0


def _merge_tags(run: Run) -> int:
    from sfumato.tools.preparation.gathering import gather

    gather(run[GatheringConfig], "tags")
    return 0


def _clean_captions(run: Run) -> int:
    from sfumato.tools.preparation.cleaning import clean

    clean(run[CleaningConfig])
    return 0


def _prepare_buckets(run: Run) -> int:
    from sfumato.tools.preparation.bucketing import prepared
    from sfumato.training.precaching import cache_latents

    cache_latents(prepared(run[BucketingConfig]))
    return 0


def _merge(run: Run) -> int:
    from sfumato.tools.adapter_merging import merge_adapters

    merge_adapters(run)
    return 0


def _merge_svd(run: Run) -> int:
    from sfumato.tools.svd_merging import svd_merge

    svd_merge(run)
    return 0


def _convert_lora(run: Run) -> int:
    from sfumato.tools.adapter_exchange import exchange

    exchange(run)
    return 0


def _extract_dylora(run: Run) -> int:
    from sfumato.tools.dylora import split

    split(run)
    return 0


_WORK: dict[str, Callable[[Run], int]] = {
    "train": _train,
    "account": _account,
    "account --json": _account_as_json,
    "generate": _generate,
    "inspect": _inspect,
    "convert": _convert,
    "show-metadata": _show_metadata,
    "merge": _merge,
    "merge-svd": _merge_svd,
    "merge-models": _merge_models,
    "extract-lora": _extract_lora,
    "resize-lora": _resize_lora,
    "cache-latents": _cache_latents,
    "cache-text": _cache_texts,
    "resize-images": _resize_images,
    "merge-captions": _merge_captions,
    "merge-tags": _merge_tags,
    "clean-captions": _clean_captions,
    "prepare-buckets": _prepare_buckets,
    "convert-lora": _convert_lora,
    "check-lora": _check_lora,
    "interrogate-lora": _interrogate_lora,
    "extract-dylora": _extract_dylora,
}
