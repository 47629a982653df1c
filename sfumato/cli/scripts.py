"""The table of scripts: which sections each one has, and what of them is not built or has no effect.

Scripts of one family are rows beside the family; those of all families lie in `rows`. Parsing, `sfumato
options`, the drop-in and the checks follow from a row.
"""

from dataclasses import replace

from sfumato import plugins
from sfumato.cli.options.flags import did_you_mean
from sfumato.cli.rows.caption_tools import CAPTION_TOOLS
from sfumato.cli.rows.data_tools import DATA_TOOLS
from sfumato.cli.rows.file_tools import FILE_TOOLS
from sfumato.cli.rows.image_scripts import IMAGE_SCRIPTS
from sfumato.config.rules.effects import because
from sfumato.config.run.run import Run
from sfumato.config.scripts.option import options_of
from sfumato.config.scripts.script import Script
from sfumato.errors import UserError
from sfumato.models.interface.catalogue import facts_of, names, our_facts
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.registry.family_choice import FamilyChoice

SCRIPTS: tuple[Script, ...] = (
    *(script for facts in our_facts() for script in facts.scripts),
    *CAPTION_TOOLS,
    *DATA_TOOLS,
    *FILE_TOOLS,
    *IMAGE_SCRIPTS,
)
"""All but those of families that other packages bring."""

_ADAPTER = "lora"
"""The method of the rows that train adapters."""


def script_named(name: str) -> Script:
    """Return the row of that script; a `.py` at the end does not matter."""
    rows = {row.name: row for row in SCRIPTS}
    name = name.removesuffix(".py")
    if name not in rows:
        raise UserError(f"there is no script {name!r}{did_you_mean(name, rows)}; known: {', '.join(rows)}")
    return rows[name]


def script_for(command: str, family: str, method: str) -> Script:
    """Return the row that `sfumato COMMAND FAMILY METHOD` runs.

    What trains an adapter also trains those that other packages offer, by their names.
    """
    rows = {(row.family, row.method): row for row in _scripts_of(family) if row.command == command}
    if (family, method) in rows:
        return rows[family, method]
    adapter = rows.get((family, _ADAPTER))
    if adapter and method in plugins.names(plugins.ADAPTERS):
        return replace(adapter, command_overrides={**adapter.command_overrides, "network_module": method})
    asked = f"{family} {method}".strip()
    known = [" ".join(key).strip() for key in rows]
    raise UserError(f"cannot {command} {asked!r}{did_you_mean(asked, known)}; known: {', '.join(known)}")


def _scripts_of(family: str) -> tuple[Script, ...]:
    """Return all rows, with those of the family if another package brings it."""
    if all(family != row.family for row in SCRIPTS) and family in names():
        return SCRIPTS + facts_of(family).scripts
    return SCRIPTS


def for_chosen_family(script: Script, run: Run) -> Script:
    """Return a tool's row as it is for the family that the run names; other rows as they are.

    What a trainer of that family cannot do, or has no use for, such a tool has not either.
    """
    if FamilyChoice not in run:
        return script
    trainer = script_for("train", run[FamilyChoice].family, "lora")
    parts = {facts.name: _about_parts(facts) for facts in our_facts()}
    own = parts.pop(trainer.family)
    strangers = because("the model has no such part", set().union(*parts.values()) - own)
    untrained = {name: reason for name, reason in trainer.without_effect.items() if name not in own}
    idle = {**strangers, **untrained, **script.without_effect}
    return replace(
        script,
        family=trainer.family,
        unsupported=script.unsupported | (trainer.unsupported - script.without_effect.keys()),
        impossible={**trainer.impossible, **script.impossible},
        without_effect=idle,
    )


def _about_parts(facts: FamilyFacts) -> set[str]:
    """Return the options that are about the parts of a family's models."""
    return {*options_of(facts.own_options + facts.own_text_options, {})}
