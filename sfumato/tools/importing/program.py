"""What a table says of another trainer's files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Settings = Mapping[str, Any]
"""Settings by their paths: `train.lr` is `lr` within `train`."""

Values = Mapping[str, Any]
"""Options of a run, or keys of a data set, by their names here."""

Reading = Callable[[Any], Values | None]
"""Returns what a setting's value is here: nothing if nothing has to be said, None without counterpart."""


@dataclass(frozen=True)
class Goal:
    """What is trained.

    Attributes:
        method: as in `sfumato train FAMILY METHOD`.
    """

    family: str
    method: str = "lora"


@dataclass(frozen=True)
class Program:
    """Another trainer.

    Attributes:
        name: of the program.
        marks: settings of which its files have one.
        goal: finds out what is trained; raises UserError for what is not trained here.
        settings: how each setting is read, by its path.
        silent: beginnings of paths that say nothing about training.
        datasets: finds the data sets; each is a table of settings.
        dataset_settings: how each setting of a data set is read.
        prompts: makes the lines of the file of prompts for previews.
        shares_names: a setting that is not in the table and has an option's name is that option.
        zero_is_nothing: 0 counts as not given.
        consequences: makes options that follow from several settings.
    """

    name: str
    marks: tuple[str, ...]
    goal: Callable[[Settings], Goal]
    settings: Mapping[str, Reading]
    silent: tuple[str, ...] = ()
    datasets: Callable[[Settings], Sequence[Settings]] = lambda _: ()
    dataset_settings: Mapping[str, Reading] = field(default_factory=dict)
    prompts: Callable[[Settings], Sequence[str]] = lambda _: ()
    shares_names: bool = False
    zero_is_nothing: bool = False
    consequences: Callable[[Settings], Values] = lambda _: {}


def to(name: str, kind: Callable[[Any], Any] = lambda value: value) -> Reading:
    """Return how a value is read that an option takes as it is, or as `kind` makes it."""
    return lambda value: {name: kind(value)}


def switch(**options: Any) -> Reading:
    """Return how a switch is read that stands for these options when it is on."""
    return lambda value: options if is_on(value) else {}


def choice(words: Mapping[str, Values]) -> Reading:
    """Return how one of a few words is read; one that is not listed has no counterpart.

    Args:
        words: in lower case, with the options that each stands for.
    """
    return lambda value: words.get(str(value).lower())


def word(name: str, words: Mapping[str, Any]) -> Reading:
    """Return how the words of one option are read, by what each is here."""
    return choice({theirs: {name: ours} for theirs, ours in words.items()})


def nothing(value: Any) -> Values:
    """Read a setting of which nothing has to be said, as something else says it."""
    return {}


def is_on(value: Any) -> bool:
    """Return whether a switch is on; some files write it as text or as a number."""
    return str(value).lower() in ("true", "1", "yes", "on")


def amount(value: Any) -> int | float:
    """Return a number; YAML and ENV files have some as text."""
    number = float(value)
    return int(number) if number.is_integer() and "e" not in str(value).lower() else number


def sides(value: Any) -> int | list[int]:
    """Return the resolution that is meant, or several of them: sides of squares, in pixels."""
    found = value if isinstance(value, list) else str(value).split(",")
    numbers = [int(amount(side)) for side in found]
    return numbers if len(numbers) > 1 else numbers[0]
