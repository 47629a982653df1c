"""How to install what is missing: a command line for the very interpreter that runs."""

from __future__ import annotations

import os
import re
import shlex
import sys
from importlib.machinery import PathFinder

_PACKAGES = {
    "lion_pytorch": "lion-pytorch",
    "lycoris": "lycoris-lora",
    "pillow_jxl": "pillow-jxl-plugin",
    "skimage": "scikit-image",
    "triton": "triton-windows" if os.name == "nt" else "triton",
}
"""Packages that are called otherwise than the modules that they bring."""


def command(*requirements: str) -> str:
    """Return the command line that installs packages for this interpreter; a shell takes it as it is.

    The `pip` that a shell finds may belong to another environment. One that uv made has none.
    """
    has_pip = PathFinder.find_spec("pip")  # setuptools has a finder of its own for it, which may warn
    pip = [sys.executable, "-m", "pip", "install"]
    uv = ["uv", "pip", "install", "--python", sys.executable]
    return " ".join(_quoted(word) for word in (*(pip if has_pip else uv), *requirements))


def command_for(module: str) -> str:
    """Return the command line that installs the package which brings a module."""
    return command(package_of(module))


def package_of(module: str) -> str:
    """Return the name of the package that brings a module, e.g. "lion-pytorch" for `lion_pytorch.sub`."""
    root = module.partition(".")[0]
    return _PACKAGES.get(root, root)


def is_renamed(module: str) -> bool:
    """Tell whether the module's package is known to be another name than its own."""
    return module.partition(".")[0] in _PACKAGES


def _quoted(word: str) -> str:
    """Return a word of a command line; double quotes serve every shell, where they are enough."""
    if re.fullmatch(r"[\w./:~\\-]+" if os.name == "nt" else r"[\w./:-]+", word):
        return word
    return f'"{word}"' if os.name == "nt" or not set(word) & set('"$`\\!') else shlex.quote(word)
