"""Cut a DyLoRA file, whose first ranks are useful without the others, into LoRAs of every smaller rank."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.adapters.files.dialects.reading import by_layer
from sfumato.adapters.files.soundness import require_sound
from sfumato.adapters.layers.lora import DOWN, UP
from sfumato.checkpoints.tensors import open_tensors
from sfumato.config.run.run import Run
from sfumato.config.tools.splitting import SplittingConfig
from sfumato.errors import UserError
from sfumato.models.components.recognise import describe
from sfumato.tools.outputs import adapter_output, require_writable

logger = logging.getLogger(__name__)


def split(run: Run) -> list[Path]:
    """Write a LoRA of each rank below the file's own: `unit`, 2 `unit` and so on; return their paths.

    Raises:
        UserError: an option is missing, or the file holds nothing that could be cut.
    """
    options = run[SplittingConfig]
    for name in ("model", "unit", "save_to"):
        if getattr(options, name) is None:
            raise UserError(f"--{name} is missing; give --model FILE --unit RANKS --save_to FILE")
    source, unit = Path(str(options.model)), options.unit or 1
    target = adapter_output("--save_to", options.save_to, ())
    with open_tensors(source) as reader:
        tensors, metadata = {key: tensor.clone() for key, tensor in reader.items()}, reader.metadata
    rank = max((t.shape[0] for key, t in tensors.items() if key.endswith(f".{DOWN}")), default=0)
    if not rank:
        what = describe({key: tuple(tensor.shape) for key, tensor in tensors.items()})
        raise UserError(
            f"--model {source}: {what}, without lora_down tensors; give a file of networks.dylora"
        )
    require_sound(source, by_layer(tensors))
    if rank <= unit:
        raise UserError(
            f"--model {source} has rank {rank}, which --unit {unit} cannot cut; give a smaller unit"
        )
    ranks = range(unit, rank, unit)
    paths = [target.with_name(f"{target.stem}-{smaller:04d}{target.suffix}") for smaller in ranks]
    require_writable("--save_to", paths[-1])
    for smaller, path in zip(ranks, paths, strict=True):
        write_adapter(path, first_ranks(tensors, smaller), _told(metadata, rank, smaller))
        logger.info("written: %s", path)
    return paths


def first_ranks(tensors: Mapping[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Return a LoRA of the first ranks of another; alpha stays, as sd-scripts has it."""
    return {key: _cut(key, tensor, rank) for key, tensor in tensors.items()}


def _cut(key: str, tensor: Tensor, rank: int) -> Tensor:
    if key.endswith(f".{DOWN}"):
        return tensor[:rank].contiguous()
    return tensor[:, :rank].contiguous() if key.endswith(f".{UP}") else tensor


def _told(metadata: Mapping[str, str], rank: int, smaller: int) -> dict[str, str]:
    """Return the metadata of a smaller LoRA, without the larger one's hashes."""
    if not metadata:
        return {}
    comment = metadata.get("ss_training_comment", "")
    told = {key: text for key, text in metadata.items() if not key.startswith("sshs_")}
    told["ss_training_comment"] = f"split from DyLoRA, rank {rank} to {smaller}; {comment}"
    return told | {"ss_network_dim": str(smaller)}
