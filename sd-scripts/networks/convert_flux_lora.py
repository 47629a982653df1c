"""Rewrite a FLUX.1 LoRA with the names of AI-toolkit, or the other way. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("networks/convert_flux_lora")

if __name__ == "__main__":
    sys.exit(script("networks/convert_flux_lora"))
