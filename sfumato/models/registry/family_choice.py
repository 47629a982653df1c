"""Options by which tools that work on several families are told which one is meant."""

from dataclasses import field, fields, make_dataclass
from typing import Any

from sfumato.errors import UserError
from sfumato.models.interface.catalogue import our_facts


class _Choice:
    """The family of models."""

    def __post_init__(self) -> None:
        if len(self._chosen()) > 1:
            given = " excludes ".join(f"--{name}" for name in self._chosen())
            raise UserError(f"{given}: a model is of one family")

    @property
    def family(self) -> str:
        """The family's name; that of the one family without an option where none is given."""
        return next(iter(self._chosen()), _WITHOUT_OPTION)

    def _chosen(self) -> list[str]:
        section: Any = self
        return [option.name for option in fields(section) if getattr(self, option.name)]


_WITHOUT_OPTION = next(facts.name for facts in our_facts() if not facts.choice)

FamilyChoice = make_dataclass(
    "FamilyChoice",
    [
        (facts.name, bool, field(default=False, metadata={"help": facts.choice}))
        for facts in our_facts()
        if facts.choice
    ],
    bases=(_Choice,),
    namespace={"__doc__": _Choice.__doc__, "__module__": __name__},
    frozen=True,
)
