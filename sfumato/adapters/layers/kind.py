"""A kind of adapter: everything that the rest of the program knows of it, brought by the kind's own file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sfumato.adapters.layers.file_form import FileForm
from sfumato.adapters.layers.ggpo import Noise
from sfumato.adapters.layers.layer import AdapterLayer, Dropouts
from sfumato.models.interface.targets import AdapterTarget

Arguments = TypeVar("Arguments")


@dataclass(frozen=True)
class NoArguments:
    """The arguments of a kind that has none."""


def leave(layer: AdapterLayer, arguments: Any) -> None:
    """Leave a layer as it was made or loaded."""


@dataclass(frozen=True)
class AdapterKind(Generic[Arguments]):
    """One kind of adapter.

    Attributes:
        name: by which it is asked for.
        title: what reports call it.
        description: the title with its article.
        prefix: what files put before a layer's name: one word and an underscore.
        files: how its layers look in files.
        arguments: a frozen dataclass of plain numbers, texts and flags, with a default for each; fields named
            `rank` and `alpha` are filled in layer by layer.
        make: makes the untrained adapter of a layer; None where the kind is only read from files.
        refine: does to each layer, made anew or read from a file, what no file says, before it is trained;
            returns the noise that acts on it in training, if there is any.
        dropouts: the fields of `Dropouts` that it heeds.
        has_plus: LoRA+ knows which of its parameters to train faster.
        is_variant: its files are those of another kind, by which they are called.
    """

    name: str
    title: str
    description: str
    prefix: str
    files: FileForm
    arguments: type[Arguments]
    make: Callable[[AdapterTarget, Arguments, Dropouts], AdapterLayer] | None
    refine: Callable[[AdapterLayer, Arguments], Noise | None] = leave
    dropouts: tuple[str, ...] = ()
    has_plus: bool = False
    is_variant: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9]+_", self.prefix):
            raise ValueError(f"{self.name}: the prefix {self.prefix!r} is not one word and an underscore")

    def sized(self, arguments: Arguments, rank: int, alpha: float | None) -> Arguments:
        """Return the arguments of one layer, with its rank and alpha if the kind has such."""
        size = {"rank": rank, "alpha": alpha}
        own = {field.name for field in dataclasses.fields(self.arguments)}  # type: ignore[arg-type]
        return dataclasses.replace(arguments, **{name: size[name] for name in size.keys() & own})  # type: ignore[type-var]


def read_only(name: str, title: str, description: str, files: FileForm) -> AdapterKind[NoArguments]:
    """Return a kind that other programs train: its files are understood, as formulas over their tensors."""
    return AdapterKind(name, title, description, "lora_", files, NoArguments, None)
