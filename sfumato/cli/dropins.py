"""The drop-in folder: one small file with the name of each script of sd-scripts."""

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli.flags import make_parser, parse_flags
from sfumato.cli.runs import SCRIPTS, Script
from sfumato.errors import UserError

_TEMPLATE = '''"""{summary} `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[{depth}]))
from sfumato.cli.main import script

if __name__ == "__main__":
    sys.exit(script("{name}"))
'''


def main(argv: Sequence[str]) -> int:
    """Write the drop-ins into the folder that the command line names."""
    parser = make_parser((), "sfumato sd-scripts", "Write drop-ins for the scripts of sd-scripts.")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write; made if it is not there")
    folder = Path(parse_flags(parser, argv)["folder"])
    try:
        for script in SCRIPTS:
            path = folder / f"{script.name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(drop_in(script), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    print(f"{len(SCRIPTS)} scripts written to {folder}")  # noqa: T201
    return 0


def drop_in(script: Script) -> str:
    """Return the text of one drop-in; the folder above the drop-in folder goes on Python's path."""
    return _TEMPLATE.format(summary=script.summary, name=script.name, depth=script.name.count("/") + 1)
