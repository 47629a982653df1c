"""Put the parts of Stable Diffusion 3 into one file. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("tools/merge_sd3_safetensors")

if __name__ == "__main__":
    sys.exit(script("tools/merge_sd3_safetensors"))
