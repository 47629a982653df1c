"""CPU seconds until `--help` and until a typo are answered, in a fresh process; the best of five."""

import json
import resource
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "sd-scripts" / "flux_train_network.py"


def main() -> None:
    """Print the two figures as JSON."""
    figures = {"help_cpu_s": best("--help"), "typo_cpu_s": best("--lerning_rate", "1")}
    print(json.dumps(figures))


def best(*arguments: str, repeats: int = 5) -> float:
    """Return the least CPU time, user and system, of one run of the script with these arguments."""
    return round(min(cpu_s(arguments) for _ in range(repeats)), 3)


def cpu_s(arguments: tuple[str, ...]) -> float:
    """Return the CPU time of one child process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, check=False, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
