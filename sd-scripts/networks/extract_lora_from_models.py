"""Make a LoRA of the difference of two models of Stable Diffusion 1, 2 or XL. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("networks/extract_lora_from_models")

if __name__ == "__main__":
    sys.exit(script("networks/extract_lora_from_models"))
