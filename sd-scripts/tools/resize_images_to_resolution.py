"""Make smaller copies of images, in several sizes. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("tools/resize_images_to_resolution")

if __name__ == "__main__":
    sys.exit(script("tools/resize_images_to_resolution"))
