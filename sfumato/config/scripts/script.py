"""A row of the table of scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sfumato.config.rule import Rule
from sfumato.config.run.data.partners import PartnerRole
from sfumato.config.scripts.option import Option, options_of


@dataclass(frozen=True)
class Script:
    """One script of sd-scripts, and the sub-command that does the same.

    Attributes:
        name: path below the drop-in folder, without suffix.
        summary: one sentence for help texts.
        command: the sub-command of `sfumato` that runs it; one of several words runs as a drop-in alone.
        sections: where its options come from, in the order of the help text.
        family: whose models it works on; empty where the files tell.
        method: the word for what is trained in `sfumato train FAMILY METHOD`.
        trainable: what the training package calls it; becomes `Run.method`.
        files: options that name files of the model, by its parts, where they are not those of all scripts.
        conditioning_role: what images in `conditioning_data_dir` are; scripts without control images have no
            `control_dir`.
        is_drop_in: whether sd-scripts has a script of that name.
        absent: options of these sections that the script does not have; their defaults hold.
        command_only: options of these sections that only the sub-command has.
        overrides: defaults that differ from the sections'.
        command_overrides: defaults that only the sub-command has; it is strict where it trains.
        choices: allowed values that differ from the sections'.
        newer_choices: values that newer versions of the script allow besides; they are not listed.
        unsupported: options that are known but not built; they stop a run unless left at their defaults.
        unsupported_values: the same for single values of an option that is built otherwise.
        impossible: options that cannot do here what they ask for, with the reason; they stop a run likewise.
        without_effect: options that change nothing here, with the reason.
        part_dtypes: options that set the dtype of one part of the model, by the part's name.
        rules: what options mean to each other here, beside the rules of the sections.
    """

    name: str
    summary: str
    command: str
    sections: tuple[type, ...]
    family: str = ""
    method: str = ""
    trainable: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    conditioning_role: PartnerRole = "mask"
    is_drop_in: bool = True
    absent: frozenset[str] = frozenset()
    command_only: frozenset[str] = frozenset()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    command_overrides: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    newer_choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()
    unsupported_values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    impossible: Mapping[str, str] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)
    part_dtypes: Mapping[str, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    def options(self, *, as_command: bool = False) -> dict[str, Option]:
        """Return the script's options by name, with the defaults of the sub-command where it is one."""
        own = {"strict": bool(self.trainable), **self.command_overrides} if as_command else {}
        options = options_of(self.sections, {**self.overrides, **own})
        options |= {name: replace(options[name], choices=allowed) for name, allowed in self.choices.items()}
        options |= {name: replace(options[name], newer=more) for name, more in self.newer_choices.items()}
        absent = self.absent if as_command else self.absent | self.command_only
        absent = absent if self.conditioning_role == "control" else absent | {"control_dir"}
        return {name: option for name, option in options.items() if name not in absent}


def names(text: str) -> frozenset[str]:
    """Return the names of options that stand in a text, between blanks."""
    return frozenset(text.split())
