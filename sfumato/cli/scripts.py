"""The table of scripts: which sections each one has, and what of them is not built or has no effect.

A new script is a new row in `rows`: parsing, `sfumato options`, the drop-in and the checks follow from it.
"""

from dataclasses import replace

from sfumato.cli.options.flags import did_you_mean
from sfumato.cli.rows.data_tools import DATA_TOOLS
from sfumato.cli.rows.file_tools import FILE_TOOLS
from sfumato.cli.rows.generators import GENERATORS
from sfumato.cli.rows.trainers import TRAINERS
from sfumato.config.rules.effects import because
from sfumato.config.run.run import Run
from sfumato.config.scripts.option import options_of
from sfumato.config.scripts.script import Script
from sfumato.errors import UserError
from sfumato.models.families.flux.options import FluxOptions, FluxTextOptions
from sfumato.models.registry.family_choice import FamilyChoice

SCRIPTS: tuple[Script, ...] = (*TRAINERS, *GENERATORS, *DATA_TOOLS, *FILE_TOOLS)


def script_named(name: str) -> Script:
    """Return the row of that script; a `.py` at the end does not matter."""
    rows = {row.name: row for row in SCRIPTS}
    name = name.removesuffix(".py")
    if name not in rows:
        raise UserError(f"there is no script {name!r}{did_you_mean(name, rows)}; known: {', '.join(rows)}")
    return rows[name]


def script_for(command: str, family: str, method: str) -> Script:
    """Return the row that `sfumato COMMAND FAMILY METHOD` runs."""
    rows = {(row.family, row.method): row for row in SCRIPTS if row.command == command}
    if (family, method) not in rows:
        asked = f"{family} {method}".strip()
        known = [" ".join(key).strip() for key in rows]
        raise UserError(f"cannot {command} {asked!r}{did_you_mean(asked, known)}; known: {', '.join(known)}")
    return rows[family, method]


def for_chosen_family(script: Script, run: Run) -> Script:
    """Return a tool's row as it is for the family that the run names; other rows as they are.

    What a trainer of that family cannot do, or has no use for, such a tool has not either.
    """
    if FamilyChoice not in run:
        return script
    trainer = script_for("train", run[FamilyChoice].family, "lora")
    parts = options_of((FluxOptions, FluxTextOptions), {})
    strangers = {} if FluxOptions in trainer.sections else because("the model has no such part", parts)
    idle = {**strangers, **trainer.without_effect, **script.without_effect}
    return replace(
        script,
        family=trainer.family,
        unsupported=script.unsupported | (trainer.unsupported - script.without_effect.keys()),
        without_effect=idle,
    )
