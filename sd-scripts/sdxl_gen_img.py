"""Make images of prompt lines with SDXL, with the seeds of this older script. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("sdxl_gen_img")

if __name__ == "__main__":
    sys.exit(script("sdxl_gen_img"))
