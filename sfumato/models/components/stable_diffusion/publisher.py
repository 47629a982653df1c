"""How Stable Diffusion 1, 2 and XL are written: one file with all parts, or a folder in diffusers' layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.checkpoints.pickles import read_counters
from sfumato.checkpoints.tensors import TensorReader
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.errors import UserError
from sfumato.models.components.pipeline_index import other_files
from sfumato.models.components.stable_diffusion import control_nets, pipeline_folder, single_file
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint
from sfumato.models.components.stable_diffusion.predicted import Predicted, as_settings
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.interface.family import CONTROLNET, DENOISER
from sfumato.models.interface.publishing import Layout, Publishing, TrainedParts, part_paths


@dataclass(frozen=True)
class CheckpointPublisher:
    """A `Publisher` of checkpoints of one layout.

    Attributes:
        checkpoint: what a model comes from.
        predicted: what its UNet predicts.
        tokenizers: load each, by the name of its folder.
    """

    checkpoint: Checkpoint
    predicted: Predicted
    tokenizers: Mapping[str, Callable[[], Tokenizer]]
    layout = Layout.WHOLE_FILE

    @contextmanager
    def files(self, parts: TrainedParts, path: Path, how: Publishing) -> Iterator[Sequence[WeightFile]]:
        """Yield the files of weights; see `Publisher`."""
        if CONTROLNET in parts:
            tensors = control_nets.file_tensors(self.checkpoint, parts[CONTROLNET])
            yield [WeightFile(path, tensors, how.metadata, how.dtype)]
            return
        self._check(parts, how)
        if how.layout is Layout.FOLDER:
            yield pipeline_folder.weight_files(self.checkpoint, parts, path, how)
        elif how.layout is Layout.PART_FILES:
            yield self._part_files(parts, path, how)
        else:
            with self.checkpoint.file() as base:
                tensors = single_file.file_tensors(self.checkpoint, parts, base)
                yield [WeightFile(path, tensors, how.metadata, how.dtype, _counters(base, how))]

    def copies(self) -> dict[str, Path]:
        """Return what lies in the base's folder besides what is written; see `Publisher`."""
        folder = self.checkpoint.path
        if folder is None or not self.checkpoint.is_folder:
            return {}
        return other_files(folder, pipeline_folder.known_folders(self.checkpoint, self.tokenizers))

    def write_settings(self, parts: TrainedParts, folder: Path, how: Publishing) -> None:
        """Write what a pipeline's folder holds besides weights; the base's own is a reference, too."""
        own = self.checkpoint.path if self.checkpoint.is_folder else None
        settings = as_settings(self.predicted)
        pipeline_folder.write_settings(
            folder, self.checkpoint, self.tokenizers, settings, how.reference or own
        )

    def _part_files(self, parts: TrainedParts, path: Path, how: Publishing) -> list[WeightFile]:
        order = sorted(parts, key=[DENOISER, *self.checkpoint.layout.parts].index)
        return [
            WeightFile(
                place,
                single_file.part_tensors(self.checkpoint.layout.parts[part], parts[part]),
                how.metadata,
                how.dtype,
            )
            for part, place in part_paths(path, order).items()
        ]

    def _check(self, parts: TrainedParts, how: Publishing) -> None:
        """Raise UserError if the other layout cannot say what the model predicts."""
        changes_layout = (how.layout is Layout.FOLDER) != self.checkpoint.is_folder
        if self.predicted.strangeness and changes_layout and how.layout is not Layout.PART_FILES:
            raise UserError(
                f"{self.checkpoint.path} predicts neither noise nor velocity as they are known here, which "
                "the other layout could not say; keep the layout"
            )
        for part, tensors in parts.items():
            if self.checkpoint.path and tensors.keys() != self.checkpoint.structure(part).state_dict().keys():
                raise ValueError(f"these are not the tensors that {part} is made of")


def _counters(base: TensorReader | None, how: Publishing) -> dict[str, int]:
    """Return the numbers of epochs and steps that a pickled file holds."""
    before = read_counters(base.path) if base is not None and how.counts_on else {}
    return {
        "epoch": before.get("epoch", 0) + how.epoch,
        "global_step": before.get("global_step", 0) + how.step,
    }
