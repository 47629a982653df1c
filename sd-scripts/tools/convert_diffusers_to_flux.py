"""Rewrite a FLUX.1 transformer from diffusers' layout as one file. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("tools/convert_diffusers_to_flux")

if __name__ == "__main__":
    sys.exit(script("tools/convert_diffusers_to_flux"))
