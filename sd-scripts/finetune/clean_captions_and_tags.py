"""Clean the captions and tags of a metadata file. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("finetune/clean_captions_and_tags")

if __name__ == "__main__":
    sys.exit(script("finetune/clean_captions_and_tags"))
