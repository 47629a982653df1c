"""Rewrite a whole checkpoint: one file as a folder in diffusers' layout, the other way, or in another format.

Weights are renamed where they lie, in files that are mapped into memory, and cast one by one when they are
written; only the matrices that OpenCLIP fuses, and pickled files, are made in memory. What is written appears
under its name when it is complete.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

from sfumato.checkpoints.atomic import temporary_name
from sfumato.checkpoints.name_trial import try_folder
from sfumato.checkpoints.pickles import SUFFIXES as PICKLE_SUFFIXES
from sfumato.checkpoints.tensors import SUFFIXES, open_tensors
from sfumato.config import json_text
from sfumato.config.run.run import Run
from sfumato.config.tools.adapter_merging import ToPublishedConfig
from sfumato.config.tools.conversion import ConversionConfig
from sfumato.errors import UserError
from sfumato.hub.access import access_for
from sfumato.hub.fetching import located
from sfumato.models.components.hub_files import SETTINGS, any_model
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions
from sfumato.models.interface.family import Family
from sfumato.models.interface.publishing import Layout, Publishing
from sfumato.models.registry.whole_models import open_model, open_rewritable
from sfumato.nn.precision import dtype_named
from sfumato.tools.outputs import require_writable

logger = logging.getLogger(__name__)

_FILES = (*SUFFIXES, *PICKLE_SUFFIXES)


def convert(run: Run) -> None:
    """Read the model that the run names and write it again.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options = run[ConversionConfig]
    access, target = access_for(run), Path(options.model_to_save)
    source = located(options.model_to_load, "MODEL_TO_LOAD", any_model(options.variant), access)
    if source is None:
        raise UserError("MODEL_TO_LOAD is empty; give a file or a folder in diffusers' layout")
    version = 1 if options.v1 else 2 if options.v2 else None
    base = open_rewritable(source, "MODEL_TO_LOAD", version=version, variant=options.variant)
    dtype = dtype_named(options.format) if options.format else None
    if target.suffix.lower() in _FILES:
        _write_file(base, source, target, dtype, options)
    else:
        reference = located(options.reference_model, "--reference_model", SETTINGS, access)
        _write_folder(base, target, dtype, options, reference or (source if source.is_dir() else None))
    logger.info("written: %s", target)


def convert_to_published(run: Run) -> None:
    """Write the denoiser that the run names as one file under its published names.

    Raises:
        UserError: a file or option will not do, or the disk is full.
    """
    options = run[ToPublishedConfig]
    access = access_for(run)
    name, base = open_model(options.diffusers_path, "--diffusers_path", InsistenceOptions(), access)
    if name != run.family:
        raise UserError(f"--diffusers_path is {options.diffusers_path}, another model; use sfumato convert")
    source = located(options.diffusers_path, "--diffusers_path", any_model(), access)
    target = Path(options.save_to)
    assert source is not None
    dtype = dtype_named(options.save_precision, "--save_precision") if options.save_precision else None
    require_writable("--save_to", target)
    base.write({}, target, Publishing(Layout.WHOLE_FILE, dtype, kept_metadata(source)))
    logger.info("written: %s", target)


def _write_file(
    base: Family, source: Path, target: Path, dtype: torch.dtype | None, options: ConversionConfig
) -> None:
    require_writable("MODEL_TO_SAVE", target)
    metadata = kept_metadata(source) | _given_metadata(options.metadata)
    how = Publishing(Layout.WHOLE_FILE, dtype, metadata, options.epoch, options.global_step, is_complete=True)
    base.write({}, target, how)


def _write_folder(
    base: Family, target: Path, dtype: torch.dtype | None, options: ConversionConfig, reference: Path | None
) -> None:
    if options.reference_model and not (reference and (reference / "model_index.json").is_file()):
        raise UserError(
            f"--reference_model is {options.reference_model}, which is no folder in diffusers' layout; "
            "give one, or leave it out"
        )
    _require_folder(target)
    how = Publishing(
        Layout.FOLDER, dtype, as_safetensors=options.use_safetensors, reference=reference, is_complete=True
    )
    base.write({}, target, how)


def kept_metadata(source: Path) -> dict[str, str]:
    """Return what a single file says of itself, but for hashes, which no longer hold."""
    if source.is_dir() or source.suffix.lower() in PICKLE_SUFFIXES:
        return {}
    with open_tensors(source) as file:
        return {key: value for key, value in file.metadata.items() if "hash" not in key}


def _given_metadata(text: str | None) -> dict[str, str]:
    if not text:
        return {}
    try:
        values = json_text.parse(text)
    except ValueError as error:
        raise UserError(f"--metadata is {text!r}, which is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f'--metadata is {text!r}; give a JSON object: {{"name": "value"}}')
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _require_folder(target: Path) -> None:
    """Raise UserError if a folder cannot be written: its name or what is there forbids it."""
    if target.exists() and not target.is_dir():
        raise UserError(f"MODEL_TO_SAVE is {target}, which is a file; for a file, end it in .safetensors")
    for place in (temporary_name(target), target):
        try_folder(place, "give another name as MODEL_TO_SAVE")
