"""What options mean to each other: rules, in tables that stand beside the options.

`sfumato.config.rules` collects and evaluates them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Values = Mapping[str, Any]
"""The value of each option of a run, by its name."""

Verdict = Literal["excludes", "needs", "implies", "idle", "unsupported"]
"""`excludes` and `needs` stop a run, `implies` sets values, `idle` is an option that changes nothing."""


@dataclass(frozen=True)
class Given:
    """That an option asks for something or, where `values` are named, that it has one of them."""

    option: str
    values: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"--{self.option}", " or ".join(map(str, self.values))]).rstrip()


Company = tuple[Given, ...]
"""What is given together."""


@dataclass(frozen=True)
class Rule:
    """What holds of each of some options as soon as it asks for something.

    Attributes:
        reason: the end of the message; of `implies` a whole message, with `{option}` and values by name.
        among: companies in any of which the rule holds; none are all.
        without: companies that lift the rule, each by itself.
        unless: lifts it, too; for what takes a comparison.
        sets: the values that follow, of `implies`.
    """

    options: tuple[str, ...]
    verdict: Verdict
    reason: str = ""
    among: tuple[Company, ...] = ()
    without: tuple[Company, ...] = ()
    unless: Callable[[Values], bool] | None = None
    sets: Callable[[Values], Values] | None = None


def given(option: str, *values: Any) -> Company:
    """Return the company of one option; `+` makes one of several."""
    return (Given(option, values),)


def in_words(companies: Iterable[Company]) -> str:
    """Return what a person would have to give: `--a or --b 1`."""
    return " or ".join(" ".join(map(str, company)) for company in companies)


def excludes(options: Iterable[str], others: Iterable[str], reason: str) -> Rule:
    """Refuse each of some options beside any of some others."""
    return Rule(tuple(options), "excludes", reason, among=tuple(given(other) for other in others))


def needs(
    options: Iterable[str],
    *companies: Company,
    reason: str = "",
    among: tuple[Company, ...] = (),
    unless: Callable[[Values], bool] | None = None,
) -> Rule:
    """Refuse options without one of some companies; `reason` says what is needed where none is named."""
    return Rule(tuple(options), "needs", reason, among, companies, unless)


def idle(options: Iterable[str], *companies: Company, among: tuple[Company, ...] = ()) -> Rule:
    """Say that options have no effect without one of some companies, or `among` some others."""
    return Rule(tuple(options), "idle", among=among, without=companies)


def implies(
    option: str,
    sets: Values,
    message: str = "",
    *,
    among: tuple[Company, ...] = (),
    without: tuple[Company, ...] = (),
) -> Rule:
    """Set other options where one is given, and say so."""
    follows = [name if value is True else f"{name} to {value}" for name, value in sets.items()]
    message = message or f"--{option} sets {' and '.join(follows)}"
    return Rule((option,), "implies", message, among, without, sets=lambda _: sets)


def implies_from(option: str, sets: Callable[[Values], Values], message: str) -> Rule:
    """Set other options where one is given, to what follows from the run's values."""
    return Rule((option,), "implies", message, sets=sets)
