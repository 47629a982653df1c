"""Merge adapters into Stable Diffusion 1 or 2, as an older script did. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("networks/merge_lora_old")

if __name__ == "__main__":
    sys.exit(script("networks/merge_lora_old"))
