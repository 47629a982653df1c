"""States: all that an interrupted run needs to go on as if it had never stopped.

A state is a folder with `state.safetensors` (weights, optimizer) and `state.json` (position, options). Where
the saved file holds the weights exactly as they are trained, the state shares it: `weights.safetensors` is
another name of the same bytes, so that a large model is written once and either can be removed.
Generators need no saving: every draw is a function of the seed and of the position (`loop.py`).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.adapters.network.network import UNSAVED
from sfumato.checkpoints.atomic import atomic_file, rename, sync_folder
from sfumato.checkpoints.name_trial import try_file, try_folder
from sfumato.checkpoints.tensors import TensorReader, open_tensors, write_tensors
from sfumato.config import json_text
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.output.hub import HubConfig
from sfumato.data.batches.loader import TrainingData
from sfumato.errors import UserError, guest_code
from sfumato.training.state import optimizer_state
from sfumato.training.state.json_tensors import mentioned, put_together, take_apart
from sfumato.training.trainables import Trainable
from sfumato.training.update.optimizer_step import WeightUpdate
from sfumato.transfer import copied

logger = logging.getLogger(__name__)

TENSORS, WEIGHTS = "state.safetensors", "weights.safetensors"
RECORD, POSITION = "state.json", "train_state.json"
UNFINISHED = (".part", ".previous")
"""What the hidden names end in of a state until it is complete, and of one that is being replaced."""
OWN = "weights/"
"""What stands before the names of weights in a state's own file."""
TREES = ("optimizer", "scheduler", "scaler")
"""Those parts of a record whose tensors are in the state's own file."""
VERSION = 2

PLACES = (
    *("resume", "output_dir", "output_name", "logging_dir", "log_tracker_name", "wandb_run_name"),
    *(field.name for section in (HubConfig, HubAccessConfig) for field in fields(section)),
)
"""Options that say where things are; they may differ without a word."""

_FIELDS = {"finished": int, "epoch": int, "seed": int, "kind": str, "options": dict}
_REMEDY = "resume from another state"

HELD = ("learning_rate", "unet_lr", "text_encoder_lr", "optimizer_args")
"""Options whose values the optimizer's groups hold, so that a state brings its own."""


_DATA_CHANGES = {
    "images": "images were added, changed or removed",
    "captions": "captions were changed",
    "batches": "images meet in other batches (other buckets, repeats or batch sizes)",
    "group": "a step is made of {now} batches and was of {before}",
    "processes": "the run has {now} processes and had {before}",
}
"""What has changed since a state was saved, where what `data_record` tells of it has."""


def data_record(data: TrainingData, group: int, num_processes: int) -> dict[str, Any]:
    """Return what a state notes of the data, on which it depends which images come next.

    Args:
        group: batches of one optimizer step, of all processes.
    """
    return {**data.fingerprint(), "group": group, "processes": num_processes}


@dataclass(frozen=True)
class State:
    """A state folder whose record was read.

    Attributes:
        finished: optimizer steps done.
        epoch: the epoch of the last of them, from 1.
        options: the public configuration of the run that saved it.
    """

    folder: Path
    record: Mapping[str, Any]

    @property
    def finished(self) -> int:
        """Optimizer steps done."""
        return int(self.record["finished"])

    @property
    def seed(self) -> int:
        """The seed of the run that saved it, chosen or given."""
        return int(self.record["seed"])

    def differences(self, options: Mapping[str, Any]) -> list[str]:
        """Return a line for each option that has another value now and matters to what is trained."""
        before = self.record["options"]
        now = json.loads(json.dumps(options))
        return [
            f"--{name} was {before.get(name, 'not given')} and is {now.get(name, 'not given')}"
            + ("; the state's holds" if name in HELD else "")
            for name in sorted((before.keys() | now.keys()) - set(PLACES))
            if before.get(name) != now.get(name)
        ]

    def data_differences(self, now: Mapping[str, Any]) -> list[str]:
        """Return a line for each way in which the data are others now; see `data_record`.

        States of earlier versions tell nothing of their data.
        """
        before = self.record.get("data", {})
        return [
            line.format(before=before[name], now=now[name])
            for name, line in _DATA_CHANGES.items()
            if name in before and name in now and before[name] != now[name]
        ]

    def require_optimizer(self, optimizer: type[torch.optim.Optimizer]) -> None:
        """Raise UserError if the state belongs to another optimizer."""
        kind = _kind(optimizer)
        if self.record["kind"] != kind:
            raise UserError(
                f"--resume {self.folder} was saved with {self.record['kind']} and the run has {kind}; "
                "resume with the same --optimizer_type"
            )

    def require_shapes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise UserError if the state belongs to weights of other names or shapes."""
        with self._opened_weights() as (reader, prefix):
            _require_shapes(shapes, reader, prefix, self.folder)

    @contextmanager
    def _opened_weights(self) -> Iterator[tuple[TensorReader, str]]:
        """Yield the file that holds the weights, and what stands before their names there."""
        shares = (self.folder / WEIGHTS).exists()
        with open_tensors(self.folder / (WEIGHTS if shares else TENSORS)) as reader:
            yield reader, "" if shares else OWN

    def restore(self, trainable: Trainable, update: WeightUpdate) -> None:
        """Put weights, optimizer, schedule and scaler back as they were.

        Raises:
            UserError: the state belongs to other weights or to another optimizer.
        """
        optimizer = update.stepping.optimizer
        self.require_optimizer(type(optimizer))
        # All is looked at first, so that nothing is restored by halves.
        self.require_shapes({name: tuple(tensor.shape) for name, tensor in trainable.tensors()})
        now = optimizer_state.described(optimizer, trainable.tensors())
        optimizer_state.require_same(self.record.get("parameters"), now, self.folder)
        with self._opened_weights() as (reader, prefix):
            _restore_weights(trainable, reader, prefix, self.folder)
        with open_tensors(self.folder / TENSORS) as reader:
            optimizer_state.restore(optimizer, self.record["optimizer"], reader, self.folder)
            for name, part in (("scheduler", update.stepping.scheduler), ("scaler", update.scaler)):
                if part is not None and self.record.get(name) is not None:
                    content = put_together(self.record[name], lambda key, _: reader.get(key))
                    with guest_code(f"--resume {self.folder}: its {name} cannot be put back", _REMEDY):
                        part.load_state_dict(content)


@dataclass(frozen=True)
class Content:
    """All that a state folder will hold.

    Attributes:
        weights: tensors of what is trained, by their names in the file.
        tensors: all others.
        record, position: the two JSON files.
    """

    weights: Mapping[str, Tensor]
    tensors: Mapping[str, Tensor]
    record: bytes
    position: bytes

    def copied(self) -> Content:
        """Return the same with tensors in RAM that do not change any more."""
        return replace(self, weights=copied(self.weights), tensors=copied(self.tensors))

    def write(self, folder: Path, saved: Path | None = None) -> None:
        """Write the folder; until it is complete, one that was there before stays.

        Args:
            saved: a file on the same disk that holds just `weights`.
        """
        with _replacing(folder) as unfinished:
            is_shared = saved is not None and _is_linked(saved, unfinished / WEIGHTS)
            tensors = {**self.tensors, **({} if is_shared else self.weights)}
            write_tensors(unfinished / TENSORS, tensors, {"format": "pt"}, takes_any=True)
            _write(unfinished / RECORD, self.record)
            # The file by which sd-scripts knows a state's position. It comes last: then a state is complete.
            _write(unfinished / POSITION, self.position)


def state_content(
    trainable: Trainable, update: WeightUpdate, finished: int, epoch: int, record: Mapping[str, Any]
) -> Content:
    """Return what a state holds now; its tensors are the live ones.

    Args:
        finished: optimizer steps done.
        record: `seed`, `options` and `data` of the run.
    """
    tensors: dict[str, Tensor] = {}
    trees: dict[str, Any] = {}
    for name, content in (
        ("optimizer", optimizer_state.content(update.stepping.optimizer)),
        ("scheduler", update.stepping.scheduler and update.stepping.scheduler.state_dict()),
        ("scaler", update.scaler and update.scaler.state_dict()),
    ):
        trees[name], found = take_apart(content, name)
        tensors |= found
    weights = {f"{OWN}{name}": tensor.detach() for name, tensor in trainable.tensors()}
    position = {"finished": finished, "epoch": epoch, "kind": _kind(type(update.stepping.optimizer))}
    parameters = optimizer_state.described(update.stepping.optimizer, trainable.tensors())
    about = {"version": VERSION, **position, "parameters": parameters}
    return Content(
        weights,
        tensors,
        json.dumps({**about, **trees, **record}).encode(),
        json.dumps({"current_epoch": epoch, "current_step": finished + 1}).encode(),
    )


def _is_linked(saved: Path, name: Path) -> bool:
    """Give a file a second name; return whether the file system can do that."""
    try:
        os.link(saved, name)
    except OSError as error:
        logger.debug("%s cannot be shared with the state, so it is written again: %s", saved, error)
        return False
    return True


def try_state(folder: Path, remedy: str) -> None:
    """Raise UserError, with this remedy, if a state cannot be written to that folder."""
    unfinished, previous = _names(folder)
    try_file(unfinished / TENSORS, remedy)
    for place in (previous, folder):
        try_folder(place, remedy)


def read_state(folder: Path) -> State:
    """Read a state's record.

    Raises:
        UserError: the folder is no state, or one that cannot be read safely.
    """
    folder = _survivor(folder)
    if not folder.is_dir():
        raise UserError(f"--resume {folder} is not a folder; give the folder that ends in -state")
    if not (folder / RECORD).exists():
        if (folder / "optimizer.bin").exists():
            raise UserError(
                f"--resume {folder} was saved by sd-scripts as pickles that cannot be restored exactly; "
                "start from its weights with --network_weights, --initial_step and --skip_until_initial_step"
            )
        raise UserError(
            f"--resume {folder} holds no {RECORD}; give a folder that was saved with --save_state"
        )
    record = _read_record(folder)
    _check_tensors(folder, record)
    return State(folder, record)


def _survivor(folder: Path) -> Path:
    """Return where a state really lies: a process may have been killed between two renames."""
    if not folder.name:  # the root, or where the program runs
        return folder
    unfinished, previous = _names(folder)
    places = (unfinished, previous) if (unfinished / POSITION).exists() else (previous,)
    found = next((place for place in (folder, *places) if place.is_dir()), folder)
    if found != folder:
        logger.warning("%s was being replaced when its run ended; resuming from %s", folder, found.name)
    return found


def _read_record(folder: Path) -> Any:
    record = json_text.read_object(folder / RECORD, _REMEDY)
    if missing := {"version", *_FIELDS, "optimizer"} - record.keys():
        raise UserError(f"{folder / RECORD} lacks {', '.join(sorted(missing))}; {_REMEDY}")
    if record["version"] != VERSION:
        raise UserError(
            f"--resume {folder} has version {record['version']}; this program reads version {VERSION}"
        )
    for name, kind in _FIELDS.items():
        value = record[name]
        if type(value) is not kind or (kind is int and not 0 <= value < 1 << 63):
            raise UserError(f"{folder / RECORD} is damaged: {name} is {str(value)[:40]}; {_REMEDY}")
    return record


def _check_tensors(folder: Path, record: Any) -> None:
    """Open the tensors, which shows a file that is missing or cut off before any model is loaded."""
    try:
        optimizer_state.require_form(put_together(record["optimizer"], _nothing), record.get("parameters"))
        for name in TREES:
            put_together(record.get(name), _nothing)
    except ValueError as error:
        raise UserError(f"{folder / RECORD} is damaged ({error}); {_REMEDY}") from None
    if (folder / WEIGHTS).exists():
        with open_tensors(folder / WEIGHTS):
            pass
    with open_tensors(folder / TENSORS) as reader:
        for name, shape in (pair for tree in TREES for pair in mentioned(record.get(tree))):
            if name not in reader:
                raise UserError(f"{folder / TENSORS} lacks {name}; {_REMEDY}")
            if shape not in (None, found := reader.shape(name)):
                raise UserError(
                    f"{folder / TENSORS} holds {found} for {name}, which is {shape} in {RECORD}; {_REMEDY}"
                )


def _nothing(name: str, device: str) -> Tensor:
    """Stand for each tensor while the form of a record is looked at."""
    return torch.empty(0)


def _restore_weights(trainable: Trainable, reader: TensorReader, prefix: str, folder: Path) -> None:
    live = [(name, tensor) for name, tensor in trainable.tensors() if not _is_new(name, prefix, reader)]
    with torch.no_grad():
        for name, tensor in live:
            tensor.copy_(reader.get(f"{prefix}{name}"))
    for name, tensor in trainable.tensors():
        if not _is_new(name, prefix, reader) and not _is_same(tensor, reader.get(f"{prefix}{name}")):
            raise UserError(
                f"--resume {folder}: {name} cannot be put back: it is made anew of something else; "
                "start anew from the file that the run saved"
            )


def _require_shapes(
    shapes: Mapping[str, tuple[int, ...]], reader: TensorReader, prefix: str, folder: Path
) -> None:
    for name, shape in shapes.items():
        key = f"{prefix}{name}"
        found = reader.shape(key) if key in reader else None
        if found != shape and not _is_new(name, prefix, reader):
            raise UserError(
                f"--resume {folder} holds {found or 'nothing'} for {name}, which is {shape} now; "
                "resume with the options of the run that saved it, or start anew from the file it saved"
            )


def _is_new(name: str, prefix: str, reader: TensorReader) -> bool:
    """Return whether a state is of a version that left this buffer to be made anew, which is mostly right."""
    return name.startswith(UNSAVED) and f"{prefix}{name}" not in reader


def _is_same(live: Tensor, saved: Tensor) -> bool:
    """Return whether a tensor holds just what was saved, in its own dtype."""
    saved = saved.to(live.device, live.dtype)
    one, other = (tensor.detach().reshape(-1).view(torch.uint8) for tensor in (live, saved))
    return torch.equal(one, other)


def _kind(optimizer: type[torch.optim.Optimizer]) -> str:
    return f"{optimizer.__module__}.{optimizer.__qualname__}"


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Make a folder appear under its name only when it is complete."""
    unfinished, previous = _names(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    shutil.rmtree(previous, ignore_errors=True)
    if folder.exists():
        rename(folder, previous)
    rename(unfinished, folder)
    sync_folder(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _names(folder: Path) -> tuple[Path, Path]:
    """Return what a state is called until it is complete, and the one it replaces until it is gone."""
    unfinished, previous = (folder.with_name(f".{folder.name}{ending}") for ending in UNFINISHED)
    return unfinished, previous


def _write(path: Path, content: bytes) -> None:
    with atomic_file(path) as file:
        file.write(content)
