"""What lets pip install the drop-in folder in the ways in which front-ends install sd-scripts.

`pip install -r requirements.txt` in the folder brings the libraries that the scripts need, and the folder
itself; `pip install -e FOLDER` brings the folder alone, as a distribution called `library` with the package
`library` in it. That distribution needs nothing: a front-end names it beside libraries of its choice, whose
versions it must not contradict. PyTorch is named nowhere, since the right build is for the user to choose.
"""

from sfumato.cli.requirements import MINIMUM

OF_OLDER_PYTHON = "tomli>=2.0; python_version < '3.11'"

OPTIMIZERS = {
    "bitsandbytes": "0.44",
    "lion-pytorch": "0.2",
    "dadaptation": "3.1",
    "prodigyopt": "1.0",
    "schedulefree": "1.3",
}
"""Libraries of optimizers that front-ends offer by name, with the oldest versions of the package's extras."""

_HEAD = """\
# Run in this folder, beside a PyTorch that suits the machine, as front-ends do: `-r requirements.txt`
"""

_PROJECT = """\
# Front-ends install this folder by this name; what the scripts need is in requirements.txt.
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"

[project]
name = "library"
version = "0.0.0"
description = "What programs that drive sd-scripts import, and the scripts that they start"
requires-python = ">=3.10"

[tool.setuptools]
packages = ["library"]
"""

_LIBRARY = '''\
"""What programs that drive sd-scripts import."""

import sys
from pathlib import Path

# Behind everything else: the program that imports this may have folders of the same names.
sys.path.append(str(Path(__file__).resolve().parents[2]))
'''

_MODULE = '''\
"""What programs import from sd-scripts' module of this name; other names say what to use instead."""

from sfumato.clients.names import offer

__getattr__ = offer("library.{name}")
'''

LIBRARY_MODULES = (
    *("accelerator_setup", "args", "caching", "checkpoint_io", "config_util", "controlnet_dataset"),
    *("dataset", "dreambooth_dataset", "finetuning_dataset", "flux_train_utils", "hidden_states"),
    *("huggingface_util", "logging_util", "loss", "model_io", "model_util", "optimizer", "sampling"),
    *("sdxl_model_util", "sdxl_original_unet", "subset", "train_util", "utils"),
)
"""The modules of `library`, with those into which version 0.11 of sd-scripts divides one of them."""


def files() -> dict[str, str]:
    """Return the text of each of these files by its path below the folder."""
    return {
        "requirements.txt": _requirements(),
        "pyproject.toml": _PROJECT,
        "library/__init__.py": _LIBRARY,
        **{f"library/{name}.py": _MODULE.format(name=name) for name in LIBRARY_MODULES},
    }


def _requirements() -> str:
    needed = {name: oldest for name, oldest in MINIMUM.items() if name != "torch"} | OPTIMIZERS
    lines = (*(f"{name}>={oldest}" for name, oldest in needed.items()), OF_OLDER_PYTHON, "-e .")
    return _HEAD + "".join(f"{line}\n" for line in lines)
