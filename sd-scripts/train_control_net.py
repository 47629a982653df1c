"""Train a ControlNet for Stable Diffusion 1 and 2. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("train_control_net")

if __name__ == "__main__":
    sys.exit(script("train_control_net"))
