"""Train a ControlNet-LLLite for SDXL, by an older name. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("sdxl_train_control_net_lllite_old")

if __name__ == "__main__":
    sys.exit(script("sdxl_train_control_net_lllite_old"))
