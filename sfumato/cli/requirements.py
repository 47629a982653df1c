"""Libraries that must be there, and new enough: a drop-in runs in whatever environment its user has."""

import re

from sfumato.errors import UserError
from sfumato.installing import command

MINIMUM = {
    "torch": "2.4",
    "numpy": "1.26",
    "pillow": "10.3",
    "safetensors": "0.4.4",
    "transformers": "5.0",
    "diffusers": "0.32",
    "accelerate": "1.0",
    "huggingface-hub": "1.0",
    "ftfy": "6.1",
    "psutil": "5.9",
    "pyyaml": "6.0",
    "tqdm": "4.66",
    "tensorboard": "2.15",
}
"""Oldest version of each library that the package works with, as pyproject.toml has them."""


def check_requirements() -> None:
    """Raise UserError naming every library that is missing or too old, and the command that mends it."""
    found = {name: _installed(name) for name in MINIMUM}
    missing = [name for name in MINIMUM if found[name] is None]
    old = [name for name, have in found.items() if have and _numbers(have) < _numbers(MINIMUM[name])]
    complaints = [f"not installed: {', '.join(missing)}"] if missing else []
    complaints += [f"{name} {found[name]} is too old" for name in old]
    if complaints:
        wanted = [f"{name}>={MINIMUM[name]}" for name in (*missing, *old)]
        raise UserError(f"{'; '.join(complaints)}; run {command(*wanted)}")


def _installed(name: str) -> str | None:
    from importlib.metadata import (  # --help does without, which takes long to load
        PackageNotFoundError,
        version,
    )

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    release = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in release.group().split(".")) if release else ()
