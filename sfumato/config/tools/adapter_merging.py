"""Which adapters are merged, and into what."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sfumato.config import json_text
from sfumato.errors import UserError


@dataclass(frozen=True)
class MergeOutput:
    """One file to write.

    Attributes:
        option: what names the model that the file is made of.
        part: one part of the model that lies in it.
        path: of the file.
    """

    option: str
    part: str
    path: str


@dataclass(frozen=True)
class AdapterMergingConfig:
    """The merge."""

    models: tuple[str, ...] | None = None
    """Adapter files to merge, in this order."""

    ratios: tuple[float, ...] | None = None
    """Strength of each adapter, as many as there are; between adapters it counts squared (see the docs)."""

    save_to: str | None = None
    """File to write: the merged model, or where no model is named, the merged adapter."""

    no_metadata: bool = False
    """Leave out what tells title, architecture and the files that were merged."""

    concat: bool = False
    """Put the ranks of adapters side by side instead of adding their numbers; ranks add up."""

    shuffle: bool = False
    """Write the ranks of the merged adapter in random order, which changes nothing else."""

    def __post_init__(self) -> None:
        if len(self.models or ()) != len(self.ratios or ()):
            counts = f"{len(self.ratios or ())} numbers for {len(self.models or ())} --models"
            raise UserError(f"--ratios has {counts}; give one for each")


@dataclass(frozen=True)
class MergeFormatConfig:
    """Dtypes of the merge."""

    precision: Literal["float", "fp16", "bf16"] = "float"
    """Dtype in which changed weights are added up."""

    save_precision: Literal[None, "float", "fp16", "bf16"] = None
    """Dtype of the file; `precision` when not given."""


@dataclass(frozen=True)
class FreeMergeFormatConfig:
    """Dtypes of the merge, by any name."""

    precision: str = "float"
    """Dtype in which changed weights are added up: float, fp16, bf16 ..."""

    save_precision: str | None = None
    """Dtype of the file, fp8 for example; `precision` when not given."""


@dataclass(frozen=True)
class WholeBaseConfig:
    """The model to merge into."""

    sd_model: str | None = None
    """Model to merge into: a file, or a folder in diffusers' layout; without one, adapters are merged."""

    v2: bool = False
    """Insist that it is Stable Diffusion 2; a model tells, an adapter may not."""

    def outputs(self, save_to: str | None) -> tuple[MergeOutput, ...]:
        """Return the file to write; none where adapters are merged with each other."""
        return (MergeOutput("sd_model", "", _given(save_to)),) if self.sd_model else ()


def part_outputs(pairs: Sequence[tuple[MergeOutput, str | None, str]]) -> tuple[MergeOutput, ...]:
    """Return the files to write of a model whose parts may have files of their own; none without a model.

    Args:
        pairs: of each part the file to write, whose path may be empty; the model to merge into; and the
            option that names the file to write. The first part's is that of merged adapters, too.

    Raises:
        UserError: a model lacks its file to write, or the other way round.
    """
    is_any = any(model for _, model, _ in pairs)
    for place, (output, model, option) in enumerate(pairs):
        if model and not output.path:
            raise UserError(f"--{output.option} is given, but not --{option}, the file to write")
        if output.path and not model and (is_any or place):
            raise UserError(f"--{option} is given, but not --{output.option}, the model to merge into")
    return tuple(output for output, model, _ in pairs if model)


@dataclass(frozen=True)
class BlockWeightConfig:
    """Block weights (LBW)."""

    lbws: tuple[str, ...] | None = None
    """For each adapter a list of numbers, '[1,0,0.5,...]': how much its layers in each block count."""

    def __post_init__(self) -> None:
        self.lists()

    def lists(self) -> tuple[tuple[float, ...], ...]:
        """Return the lists of numbers.

        Raises:
            UserError: a list is none, or of another length than is known.
        """
        lists = tuple(_numbers(text) for text in self.lbws or ())
        if len({len(numbers) for numbers in lists}) > 1:
            raise UserError("--lbws has lists of different lengths; give lists of one length")
        return lists


@dataclass(frozen=True)
class NewRankConfig:
    """The merged adapter's size."""

    new_rank: int = 4
    """Rank of the merged adapter."""

    new_conv_rank: int | None = None
    """Rank of layers with kernels wider than 1x1; `new_rank` when not given."""

    device: str | None = None
    """Where to compute: `cpu`, `cuda` ...; the CPU when not given."""

    base_model: str | None = None
    """Model that the adapters are for, a file or a folder; rotations (OFT) turn its weights, and it tells the
    shapes of convolutions where LoHa and LoKr leave them open."""

    def __post_init__(self) -> None:
        for name in ("new_rank", "new_conv_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; give a rank of 1 or more")


@dataclass(frozen=True)
class ToPublishedConfig:
    """The conversion."""

    diffusers_path: str = field(default="", metadata={"required": True})
    """Model to read: a folder in diffusers' layout, or one of its transformer's files."""

    save_to: str = field(default="", metadata={"required": True})
    """File to write, under the names that the model was published with."""

    mem_eff_load_save: bool = False
    """Read and write one tensor at a time, which is always done."""

    save_precision: str | None = None
    """Dtype of the file; each tensor's own when not given."""


def _given(save_to: str | None) -> str:
    if not save_to:
        raise UserError("--save_to is not given; name the file to write")
    return save_to


def _numbers(text: str) -> tuple[float, ...]:
    expected = "--lbws takes lists of 12, 17, 20 or 26 numbers, such as '[1,0.5,0,...]'"
    try:
        values = json_text.parse(text)
    except ValueError:
        raise UserError(f"{expected}; {text!r} is none") from None
    if not isinstance(values, list) or not all(type(v) in (int, float) for v in values):
        raise UserError(f"{expected}; {text!r} is none")
    if len(values) not in (12, 17, 20, 26):
        raise UserError(f"{expected}; {text!r} has {len(values)}")
    return tuple(float(value) for value in values)
