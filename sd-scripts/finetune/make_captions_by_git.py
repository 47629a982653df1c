"""Describe images in a sentence, with GIT. `--help` lists the options."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from sfumato.cli.main import script
from sfumato.clients.names import offer

__getattr__ = offer("finetune/make_captions_by_git")

if __name__ == "__main__":
    sys.exit(script("finetune/make_captions_by_git"))
