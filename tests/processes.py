"""Real runs in processes of their own, started quickly: a server that imported all they need forks them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver") if hasattr(os, "fork") else None
if _SERVER:
    _SERVER.set_forkserver_preload(
        [
            "sfumato.training.run.setup",
            "sfumato.models.families.flux.family",
            "transformers.models.clip.modeling_clip",
            "transformers.models.t5.modeling_t5",
            "transformers.optimization",
            "diffusers.models.autoencoders.autoencoder_kl",
            "torch._dynamo",
            "torch.utils.tensorboard",
        ]
    )


def start(
    arguments: Sequence[str],
    log: Path,
    meddle: Callable[..., None] | None = None,
    *extra: object,
    name: str = "flux_train_network",
) -> BaseProcess:
    """Start the script of that name with these arguments; what it prints is added to `log`.

    Args:
        meddle: called in the new process with `extra` before the run.
    """
    assert _SERVER
    process = _SERVER.Process(target=_run, args=(name, list(arguments), str(log), meddle, extra))
    process.start()
    return process


def finish(process: BaseProcess, within_s: float = 120) -> int:
    """Wait for a run; return its exit status, negative for a signal."""
    process.join(within_s)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"the run did not end within {within_s} s")
    return process.exitcode


def die_at_rename(number: int) -> None:
    """Make this process kill itself just before the rename with this number, from 1."""
    _die_before(os, ("replace", "rename"), number)


def die_at_sync(number: int) -> None:
    """Make this process kill itself just before it flushes a file or folder for the n-th time, from 1."""
    _die_before(os, ("fsync",), number)


def slow_steps(seconds: float) -> None:
    """Make every step of this process take longer, and the process the first of its own group."""
    from sfumato.training.update.optimizer_step import Update

    os.setsid()
    finish = Update.finish

    def slow(update: Update) -> object:
        time.sleep(seconds)
        return finish(update)

    Update.finish = slow  # type: ignore[method-assign,assignment]


def slow_steps_without_hangups(seconds: float) -> None:
    """Do the same in a process that was started by `nohup`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    slow_steps(seconds)


def _die_before(module: object, names: Sequence[str], number: int) -> None:
    left = [number]

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in names:
        setattr(module, name, dying(getattr(module, name)))


def _run(
    name: str, arguments: list[str], log: str, meddle: Callable[..., None] | None, extra: tuple[object, ...]
) -> None:
    import torch

    from sfumato.cli.main import script

    multiprocessing.set_start_method("fork", force=True)  # as in a run that was started by hand
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    gc.freeze()  # what the server imported is no garbage, and takes long to be looked through
    if meddle:
        meddle(*extra)
    sys.exit(script(name, arguments))
