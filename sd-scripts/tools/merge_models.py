"""Merge whole models: the weighted sum of their tensors. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("tools/merge_models")

if __name__ == "__main__":
    sys.exit(script("tools/merge_models"))
