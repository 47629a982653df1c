"""Rewrite a LoRA file with the names that another program gives its layers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files import interchange
from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.files.soundness import require_sound
from sfumato.checkpoints.tensors import open_tensors
from sfumato.config.run.run import Run
from sfumato.config.tools.adapter_merging import AdapterExchangeConfig
from sfumato.errors import UserError
from sfumato.log import counted
from sfumato.models.components.recognise import describe
from sfumato.tools.outputs import adapter_output

logger = logging.getLogger(__name__)


def exchange(run: Run) -> None:
    """Write the file that the run names again; its metadata is kept, but for hashes, which are made anew.

    Raises:
        UserError: the file is missing, or none of its layers is known.
    """
    options = run[AdapterExchangeConfig]
    if not options.src_path:
        raise UserError("--src_path is not given; name the file to read")
    source = Path(options.src_path)
    target = adapter_output("--dst_path", options.dst_path, [source])
    with open_tensors(source) as reader:
        tensors, metadata = interchange.undotted(dict(reader.items())), reader.metadata
    if interchange.is_foreign(tensors) != (options.src == "ai-toolkit"):
        raise UserError(f"--src is {options.src}, but {source} is not written so; exchange --src and --dst")
    convert = interchange.to_own if options.src == "ai-toolkit" else interchange.to_theirs
    require_sound(source, tensors)
    converted, rest = convert(tensors)
    if not converted:
        what = describe({key: tuple(tensor.shape) for key, tensor in tensors.items()})
        raise UserError(
            f"--src_path is {source}: {what}, but no layer of it has two names; give another LoRA"
        )
    if rest:
        logger.warning(
            "%s: %s not known and left out (%s ...)", source, counted(len(rest), "tensor"), rest[0]
        )
    _tell_of_switches(source, tensors, converted)
    kept = {key: text for key, text in metadata.items() if not key.startswith("sshs_")}
    write_adapter(target, converted, kept)
    logger.info("written: %s (%s)", target, counted(len(converted), "tensor"))


def _tell_of_switches(source: Path, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
    """Say so where layers are switched off by an alpha of 0, and the other naming has none to say it with."""
    count, left = (
        sum(key.endswith(".alpha") and not float(tensor) for key, tensor in tensors.items())
        for tensors in (before, after)
    )
    if count > left:
        number = counted(count, "layer is", "layers are")
        logger.info("%s: %s switched off (alpha 0): written with an up of zeros", source, number)
