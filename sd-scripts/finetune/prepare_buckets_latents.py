"""Give the images of a metadata file their training sizes, and encode them. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("finetune/prepare_buckets_latents")

if __name__ == "__main__":
    sys.exit(script("finetune/prepare_buckets_latents"))
