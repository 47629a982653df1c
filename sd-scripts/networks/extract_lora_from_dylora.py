"""Cut a DyLoRA into LoRAs of every smaller rank. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("networks/extract_lora_from_dylora")

if __name__ == "__main__":
    sys.exit(script("networks/extract_lora_from_dylora"))
