"""Make images of prompt lines, guided by CLIP or VGG if need be. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("gen_img_diffusers")

if __name__ == "__main__":
    sys.exit(script("gen_img_diffusers"))
