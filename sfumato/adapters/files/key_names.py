"""Names of a module's layers in its maker's files, and in the files that other programs expect.

A foreign network module names layers by their paths in the model it is given; files in the world name them
after published checkpoints. The family's table, read through `every_target`, translates both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from sfumato.adapters.files.adapter_file import write_adapter
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.checkpoints.tensors import open_tensors
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.interface.targets import every_target
from sfumato.nn import dry_run

Names = Mapping[str, str]
"""From names by module path to names in files, both without the adapter kind's prefix."""


def names_in_files(family: Family, models: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return the file's name of each layer by the name that its path gives.

    Text encoders are counted from 1 in paths' names, unless there is only one.
    """
    texts = list(family.text_outputs)
    owners = {part: f"te{number}" if len(texts) > 1 else "te" for number, part in enumerate(texts, 1)}
    owners[DENOISER] = "unet"
    names = {}
    for part, model in models.items():
        if part in owners:
            targets = {id(target.module): target.name for target in every_target(family, part, model)}
            for path, module in model.named_modules():
                if id(module) in targets:
                    names[f"{owners[part]}_{path}".replace(".", "_")] = targets[id(module)]
    return names


def renamed(key: str, names: Names) -> str:
    """Return a tensor's key with its layer's name translated, if the name is known."""
    layer, dot, rest = key.partition(".")
    prefix, _, name = layer.partition("_")
    return f"{prefix}_{names[name]}{dot}{rest}" if name in names else key


def unknown(keys: Iterable[str], names: Names) -> list[str]:
    """Return the layers among `keys` that the table does not know."""
    layers = dict.fromkeys(key.partition(".")[0] for key in keys)
    return [layer for layer in layers if layer.partition("_")[2] not in names]


def rename_file(path: Path, names: Names, target: Path | None = None) -> None:
    """Write an adapter file anew with translated keys, in place or to `target`; its hashes are made anew."""
    with open_tensors(path) as reader:
        tensors = {
            renamed(key, names): LazyTensor.of(tensor.clone(), is_copy=True) for key, tensor in reader.items()
        }
        metadata = {key: text for key, text in reader.metadata.items() if not key.startswith("sshs_")}
    write_adapter(target or path, tensors, metadata)


@contextmanager
def copy_by_path(path: Path, names: Names) -> Iterator[Path]:
    """Lend an adapter file in which layers are named by their paths: a copy, or the file if it needs none."""
    backward = {theirs: own for own, theirs in names.items()}
    with open_tensors(path) as reader:
        is_ready = all(renamed(key, backward) == key for key in reader.keys())  # noqa: SIM118 - no mapping
    if is_ready:
        yield path
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with dry_run.with_numbers():
            rename_file(path, backward, copy)
        yield copy
