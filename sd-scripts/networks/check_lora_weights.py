"""Say what an adapter file holds, and which programs load it. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("networks/check_lora_weights")

if __name__ == "__main__":
    sys.exit(script("networks/check_lora_weights"))
