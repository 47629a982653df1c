"""Train whole Stable Diffusion 3 and 3.5, with text encoders if need be. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("sd3_train")

if __name__ == "__main__":
    sys.exit(script("sd3_train"))
