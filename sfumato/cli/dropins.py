"""The drop-in folder: one small file with the name of each script and each network module of sd-scripts.

What lets pip install it lies in it, too.
"""

from collections.abc import Sequence
from pathlib import Path

from sfumato.cli import folder_package
from sfumato.cli.options.flags import make_parser, parse_flags
from sfumato.cli.scripts import SCRIPTS
from sfumato.config.scripts.script import Script
from sfumato.errors import UserError

_TEMPLATE = '''"""{summary} `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[{depth}]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("{name}")

if __name__ == "__main__":
    sys.exit(script("{name}"))
'''

_NETWORK_TEMPLATE = '''"""The network module of this name, for programs that import it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.dropin import {names}

_module = PluginModule("{name}")
create_network = _module.create_network
create_network_from_weights = _module.create_network_from_weights
'''

NETWORK_MODULES = (
    "networks/dylora",
    "networks/loha",
    "networks/lokr",
    "networks/lora",
    "networks/lora_fa",
    "networks/lora_flux",
    "networks/lora_sd3",
    "networks/oft",
    "networks/oft_flux",
)
"""Modules that other programs import, by their path below the drop-in folder."""

_HELPERS = {
    "networks/lora": (
        "get_block_index",
        "get_block_lr_weight",
        "remove_block_dims_and_alphas",
        "get_block_dims_and_alphas",
        "parse_block_lr_kwargs",
    )
}
"""Further functions that are imported from some of them."""


def main(argv: Sequence[str]) -> int:
    """Write the drop-ins into the folder that the command line names."""
    parser = make_parser((), "sfumato sd-scripts", "Write drop-ins for the scripts of sd-scripts.")
    parser.add_argument("folder", metavar="FOLDER", help="folder to write; made if it is not there")
    folder = Path(parse_flags(parser, argv)["folder"])
    try:
        for name, text in files().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot write there: {error.strerror}") from None
    print(f"{len(files())} files written to {folder}")  # noqa: T201
    return 0


def files() -> dict[str, str]:
    """Return the text of every file by its path below the folder."""
    scripts = {f"{script.name}.py": _drop_in(script) for script in SCRIPTS if script.is_drop_in}
    modules = {f"{name}.py": _network_module(name) for name in NETWORK_MODULES}
    return scripts | modules | folder_package.files()


def _network_module(path: str) -> str:
    helpers = _HELPERS.get(path, ())
    names = "PluginModule, block_helpers" if helpers else "PluginModule"
    lines = "".join(f"{name} = block_helpers.{name}\n" for name in helpers)
    return _NETWORK_TEMPLATE.format(name=path.replace("/", "."), names=names) + lines


def _drop_in(script: Script) -> str:
    # The folder above the drop-in folder goes on Python's path.
    return _TEMPLATE.format(summary=script.summary, name=script.name, depth=script.name.count("/") + 1)
