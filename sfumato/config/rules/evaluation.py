"""The one place where rules about options are applied: before anything is read or loaded."""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from sfumato.config.rule import Company, Given, Rule, in_words
from sfumato.config.rules.asked import Asked
from sfumato.config.run.run import Run
from sfumato.errors import UserError


def check_conflicts(run: Run, rules: Iterable[Rule]) -> None:
    """Raise UserError for the first combination that cannot work.

    Call it before `imply`, which turns older spellings into newer ones.
    """
    asked = Asked.of(run)
    for rule, name in asked.of_verdict(rules, "excludes", "needs"):
        raise UserError(f"{asked.shown(name)} {_conflict(rule, asked)}")


def _conflict(rule: Rule, asked: Asked) -> str:
    if rule.verdict == "excludes":
        other = next(asked.met(rule))[0].option
        return f"excludes {asked.shown(other)}: {rule.reason}"
    return f"needs {': '.join(filter(None, (in_words(rule.without), rule.reason)))}"


def imply(run: Run, rules: Iterable[Rule]) -> tuple[Run, list[str]]:
    """Return the run with all that follows from its settings, and a message for each thing that changed."""
    rules, messages = tuple(rules), list[str]()
    while found := _next_change(run, rules):
        changes, message = found
        run = run.with_values(changes)
        messages.append(message)
    return run, messages


def _next_change(run: Run, rules: Iterable[Rule]) -> tuple[dict[str, Any], str] | None:
    """Return the first values that follow and are not set yet, and what is said about them."""
    asked = Asked.of(run)
    values = asked.values
    for rule, name in asked.of_verdict(rules, "implies"):
        assert rule.sets is not None
        wanted = rule.sets(values).items()
        changes = {option: value for option, value in wanted if value != values.get(option, value)}
        if changes:
            return changes, rule.reason.format(**{**values, **changes, "option": name})
    return None


def idle_options(rules: Iterable[Rule], asked: Asked) -> dict[Rule, list[str]]:
    """Return the options that were given although they change nothing, by the first rule that says so."""
    found: dict[Rule, list[str]] = {}
    told = set[str]()
    for rule, name in asked.of_verdict(rules, "idle"):
        if name not in told:
            found.setdefault(rule, []).append(name)
            told.add(name)
    return found


def idle_lines(idle: Mapping[Rule, Iterable[str]]) -> list[str]:
    """Return what a person is told of options without effect: a line for each reason or for each option."""
    lines = []
    for rule, names in idle.items():
        flags = [f"--{name}" for name in names]
        if rule.among or rule.without:
            company = f"without {in_words(rule.without)}" if rule.without else f"with {in_words(rule.among)}"
            lines += [f"{flag} has no effect {company}" for flag in flags]
        else:
            verb = "have" if len(flags) > 1 else "has"
            lines.append(f"{', '.join(flags)} {verb} no effect here: {rule.reason}")
    return lines


def check_supported(rules: Iterable[Rule], asked: Asked, idle: Iterable[str]) -> None:
    """Raise UserError for an option that asks for what is not built, unless it is idle anyway."""
    for rule, name in asked.of_verdict(rules, "unsupported"):
        if rule.among:
            raise UserError(f"{asked.shown(name)} is not supported yet; leave it out")
        if name not in idle:
            why = f"cannot work here: {rule.reason}" if rule.reason else "is not supported yet; leave it out"
            raise UserError(f"--{name} {why}")


def acts_with(rules: Iterable[Rule], name: str) -> list[Company] | None:
    """Return the companies in which an option acts: None if in all, an empty list if it never acts.

    Rules that depend on a comparison, or on the option's own value, are not looked at.
    """
    lifted = [
        rule.without
        for rule in rules
        if rule.verdict == "idle" and name in rule.options and not (rule.among or rule.unless)
    ]
    if not lifted:
        return None
    return [sum(companies, ()) for companies in product(*lifted)]


def idle_with(rules: Iterable[Rule], name: str) -> list[Company]:
    """Return the companies in any of which an option has no effect."""
    idle = (rule for rule in rules if rule.verdict == "idle" and name in rule.options)
    return [company for rule in idle if not (rule.without or rule.unless) for company in rule.among]


def as_json(companies: Iterable[Company] | None) -> list[dict[str, Any]] | None:
    """Return companies as tables of options: a list of values, or true for whatever is not the default."""
    return None if companies is None else [dict(map(_entry, company)) for company in companies]


def _entry(given: Given) -> tuple[str, Any]:
    return given.option, list(given.values) or True
