"""What one invocation asks for: a script, a family, what is trained, and one frozen section per topic."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from sfumato.config.run.data.partners import PartnerRole

Section = TypeVar("Section")


@dataclass(frozen=True)
class NamedFile:
    """A file or folder that an option names.

    Attributes:
        path: None where the option is not given.
        option: without dashes, for messages.
    """

    path: Path | None
    option: str


class Run:
    """A typed bag of configuration sections: `run[OptimizerConfig].learning_rate`.

    To ask for a section that the script does not have is an error. Code that several scripts share says
    what holds then: `run.get(FlowConfig, FlowConfig())`, or asks `section in run`.

    Attributes:
        from_file: options that a configuration file gave; front-ends write it, without knowing the machine.
        files: options that name files of the model, by its parts, where they are not those of all scripts.
        conditioning_role: what the images in `conditioning_data_dir` are to what is trained.
    """

    def __init__(
        self,
        script: str,
        family: str,
        sections: Iterable[Any],
        method: str = "",
        from_file: frozenset[str] = frozenset(),
        files: Mapping[str, str] | None = None,
        conditioning_role: PartnerRole = "mask",
    ) -> None:
        self.script = script
        self.family = family
        self.method = method
        self.from_file = from_file
        self.files = files or {}
        self.conditioning_role: PartnerRole = conditioning_role
        self._sections = {type(section): section for section in sections}

    def __getitem__(self, section: type[Section]) -> Section:
        if section not in self._sections:
            raise ValueError(f"{self.script} has no {section.__name__}; ask for it with a default")
        return self._sections[section]

    def get(self, section: type[Section], default: Section) -> Section:
        """Return a section, or a default where the script does not have it."""
        return self._sections.get(section, default)

    def __contains__(self, section: type) -> bool:
        return section in self._sections

    def __iter__(self) -> Iterator[Any]:
        return iter(self._sections.values())

    def with_sections(self, *sections: Any) -> "Run":
        """Return a copy in which each given section replaces the one of its type."""
        replaced = self._sections | {type(section): section for section in sections}
        return Run(
            *(self.script, self.family, replaced.values(), self.method, self.from_file),
            *(self.files, self.conditioning_role),
        )

    def of_family(self, family: str) -> "Run":
        """Return a copy that is about another family."""
        return Run(
            *(self.script, family, self, self.method, self.from_file),
            *(self.files, self.conditioning_role),
        )

    def file(self, part: str, usual: str) -> NamedFile:
        """Return the file that is given for a part of the model; `usual` is the option in most scripts."""
        option = self.files.get(part, usual)
        name = self.values().get(option)
        return NamedFile(Path(name) if name else None, option)

    def with_values(self, values: Mapping[str, Any]) -> "Run":
        """Return a copy in which some options, each of whatever section has it, have other values."""
        sections = []
        for section in self:
            own = {field.name: values[field.name] for field in fields(section) if field.name in values}
            sections.append(replace(section, **own) if own else section)
        return self.with_sections(*sections)

    def values(self) -> dict[str, Any]:
        """Return every option of every section, by its name on the command line."""
        return {field.name: getattr(section, field.name) for section in self for field in fields(section)}
