"""Walk through docs/getting_started.md as its reader does, in the environment that quickstart.py makes.

`python tests/walk_getting_started.py` needs nothing but Python: it runs what the page says, one process
after the other, with tiny models and images in the place of the named ones. It is no part of the tests,
whose environment has everything.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.docs.commands import SMALLER, commands  # noqa: E402

PAGE = ROOT / "docs" / "getting_started.md"
PROGRAMS = ROOT / ".venv" / ("Scripts" if os.name == "nt" else "bin")


def main() -> int:
    """Install, then train and draw; return 0 if the page keeps its word."""
    (install,) = (
        line.strip() for line in PAGE.read_text("utf-8").splitlines() if line.endswith("py install")
    )
    run([sys.executable, *shlex.split(install)[1:]], ROOT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        furnish = "import sys; from pathlib import Path; from tests.docs.workplace import furnish; "
        run([str(PROGRAMS / "python"), "-c", f"{furnish}furnish(Path(sys.argv[1]))", name], ROOT)
        train, draw = (words[1:] + SMALLER[words[1]] for words in map(shlex.split, commands(PAGE)))
        train += ["--max_train_epochs", "1"]
        run([str(PROGRAMS / "sfumato"), *train], folder)
        script = str(ROOT / "sd-scripts" / "flux_train_network.py")
        run([str(PROGRAMS / "accelerate"), "launch", *LAUNCH, script, *train[3:]], folder)
        run([sys.executable, str(ROOT / "quickstart.py"), *draw], folder)
        made = {path.suffix for path in (folder / "outputs").iterdir()}
    return 0 if {".safetensors", ".png"} <= made else 1


LAUNCH = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
"""What accelerate would otherwise warn that it assumes."""


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command as in an activated environment; stop at the first that fails."""
    sys.stderr.write(f"walk: {shlex.join(command)}\n")
    sys.stderr.flush()
    places = os.pathsep.join([str(PROGRAMS), os.environ.get("PATH", "")])
    subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PATH": places})


if __name__ == "__main__":
    sys.exit(main())
