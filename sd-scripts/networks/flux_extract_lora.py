"""Make a LoRA of the difference of two FLUX.1 models. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("networks/flux_extract_lora")

if __name__ == "__main__":
    sys.exit(script("networks/flux_extract_lora"))
