"""Compile a model's repeated blocks, each on its own, once for all sizes of images.

Blocks are short and alike: compiling one takes seconds where a whole model takes minutes, and hooks between
blocks (swapped weights) stay outside. Sizes of inputs are symbols from the start, so that a new bucket
compiles nothing; a batch of one image and a batch of several are two cases, as are training and generation.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import nn

from sfumato import installing
from sfumato.errors import UserError

_MISSPELT = {"tensort": "tensorrt"}
"""Backends that sd-scripts' options call by another name than torch does."""

_CASES = 8
"""How often one kind of block may be compiled for every block there is: batch sizes, modes, gradients."""


def check(backend: str, device: torch.device) -> None:
    """Raise UserError if blocks cannot be compiled here.

    Args:
        backend: one of torch.compile's.
        device: what the blocks run on.
    """
    is_listed = _MISSPELT.get(backend, backend) in torch.compiler.list_backends(exclude_tags=())
    if not is_listed or (backend == "tvm" and find_spec("tvm") is None):  # that one is always listed
        raise UserError(f"--dynamo_backend {backend} is not installed here; use inductor")
    if backend == "inductor" and (lack := _lack_of_inductor(device)):
        raise UserError(f"--torch_compile needs {lack}, or leave that out")


def enable(blocks: Sequence[nn.Module], backend: str) -> None:
    """Compile each of `blocks` when it first runs; call this before checkpointing is enabled."""
    # Beyond this limit blocks would run uncompiled without a word.
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, _CASES * len(blocks))
    for block in blocks:
        block.forward = torch.compile(block.forward, backend=_MISSPELT.get(backend, backend), dynamic=True)


def _lack_of_inductor(device: torch.device) -> str | None:
    """Return what the default compiler misses: it writes C++ for processors, Triton for graphics cards."""
    if device.type != "cpu" and find_spec("triton") is None:
        return f"triton, which is missing here: run {installing.command_for('triton')}"
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    return None if any(name and shutil.which(name) for name in compilers) else "a C++ compiler: install one"
