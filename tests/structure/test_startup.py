"""Help texts, lists of options and typos are there at once: the standard library is all that they import."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import contextlib, io, sys

class Watch:
    # Finds no module; notes who asks for one that is neither the language's nor ours.
    asked = set()
    quick = sys.stdlib_module_names | {"sfumato", "tomli"}

    def find_spec(self, name, path=None, target=None):
        library, frame, asking = name.partition(".")[0], sys._getframe(), []
        while frame:
            asking.append(frame.f_globals.get("__name__", ""))
            frame = frame.f_back
        if library not in self.quick:
            importer = next((name for name in asking if name.startswith("sfumato")), asking[-1])
            self.asked.add((importer, library))

sys.meta_path.insert(0, Watch())
from sfumato.cli import main as cli
from sfumato.cli.scripts import SCRIPTS

def quietly(run, *argv):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            run(*argv)
"""

EVERYTHING = """
for row in SCRIPTS:
    quietly(cli.script, row.name, ["--help"])
    quietly(cli.script, row.name, ["--no_such_option"])
    quietly(cli.main, ["options", row.name, "--json"])
for command in cli._COMMANDS.keys() - {"demo"}:  # one program, whose parser is inside
    quietly(cli.main, [command, "--help"])
quietly(cli.main, ["train", "flux", "lora", "--learning_rate", "none"])
quietly(cli.main, ["no-such-command"])
"""

REPORT = """
found = sorted(pair for pair in Watch.asked if pair[1] in sys.modules)  # some only ask whether one is there
print(*(f"{importer} imports {library}" for importer, library in found), sep="\\n", end="")
"""


def imported_by(code: str) -> list[str]:
    """Run a few lines in a process of their own; return who imported which library meanwhile."""
    program = f"{PROGRAM}\n{code}\n{REPORT}"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_command_line_starts_without_torch() -> None:
    assert imported_by(EVERYTHING) == []


def test_whoever_imports_a_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("", "utf-8")
    code = f"sys.path.insert(0, {str(tmp_path)!r}); exec('import torch', {{'__name__': 'sfumato.cli.one'}})"
    assert imported_by(code) == ["sfumato.cli.one imports torch"]
