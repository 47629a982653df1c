"""What a run asks for, and which rules hold of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from sfumato.config.rule import Company, Given, Rule, Values, Verdict
from sfumato.config.run.run import Run
from sfumato.config.scripts.option import Option


@dataclass(frozen=True)
class Asked:
    """The values of a run, and those that it would have without being asked for anything.

    Attributes:
        unread: options of which a file gives a value that nobody can read.
    """

    values: Values
    defaults: Values
    unread: frozenset[str] = frozenset()

    @classmethod
    def of(cls, run: Run) -> "Asked":
        """Return what a run asks for, measured by the defaults of its sections."""
        defaults = {field.name: field.default for section in run for field in fields(section)}
        return cls(run.values(), defaults)

    @classmethod
    def of_options(cls, options: Mapping[str, Option], run: Run, unread: Iterable[str] = ()) -> "Asked":
        """Return what a run asks for by the options of its script; sections may hold some that it has not."""
        values = {name: value for name, value in run.values().items() if name in options}
        defaults = {name: option.default for name, option in options.items()}
        return cls(values, defaults, frozenset(unread))

    def is_asked(self, name: str) -> bool:
        """Tell whether a value asks for something: 0 and "" do not where the default is 'not given'."""
        if name not in self.values:
            return False
        value, default = self.values[name], self.defaults[name]
        return value != default and not (default is None and not value)

    def met(self, rule: Rule) -> Iterator[Company]:
        """Yield the companies of a rule's `among` that the run is in."""
        return (company for company in rule.among if self._is_in(company))

    def subjects(self, rule: Rule) -> Iterator[str]:
        """Yield the options of which a rule holds."""
        asked = [name for name in rule.options if name in self.unread or self.is_asked(name)]
        if asked and self._holds(rule):
            yield from asked

    def of_verdict(self, rules: Iterable[Rule], *verdicts: Verdict) -> Iterator[tuple[Rule, str]]:
        """Yield the rules with one of some verdicts, with each option of which they hold."""
        chosen = (rule for rule in rules if rule.verdict in verdicts)
        return ((rule, name) for rule in chosen for name in self.subjects(rule))

    def shown(self, name: str) -> str:
        """Return an option as a person gives it."""
        value: Any = self.values[name]
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        return f"--{name}" if value is True else f"--{name} {shown}"

    def _holds(self, rule: Rule) -> bool:
        is_among = not rule.among or any(self.met(rule))
        is_lifted = any(map(self._is_in, rule.without)) or (rule.unless and rule.unless(self.values))
        return is_among and not is_lifted

    def _is_in(self, company: Company) -> bool:
        return all(map(self._is_given, company))

    def _is_given(self, given: Given) -> bool:
        return self.values.get(given.option) in given.values if given.values else self.is_asked(given.option)
