"""The commands of the documentation, read off its pages; needs nothing but Python."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

TOOLS = "cache-latents|cache-text|resize-images|merge-captions|clean-captions|prepare-buckets|convert|inspect"
LORA_TOOLS = "(extract|resize|convert|check|interrogate)-lora|extract-dylora|merge|merge-svd"
STARTS = (
    r"accelerate launch .*?sd-scripts/\w+\.py",
    r"python sd-scripts/[\w/]+\.py",
    rf"sfumato (train|plan|generate|{TOOLS}|{LORA_TOOLS})",
)
START = re.compile(rf"({'|'.join(STARTS)})\s")
SMALLER = {
    "train": ["--max_data_loader_n_workers", "0", "--resolution", "64"],
    "plan": ["--max_data_loader_n_workers", "0", "--resolution", "64"],
    "prepare-buckets": ["--max_resolution", "64,64", "--min_bucket_reso", "64"],
    "generate": shlex.split("--width 32 --height 32 --steps 1"),
}
"""What makes a command fit for tiny models, by sub-command."""


def commands(page: Path) -> list[str]:
    """Return the indented commands of a page that do something with models, each on one line, in order."""
    lines = page.read_text("utf-8").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("    ") and START.match(line.strip())]
