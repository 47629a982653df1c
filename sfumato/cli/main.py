"""The `sfumato` command, and the entry of the drop-ins for sd-scripts.

Nothing is imported here before it is needed: help texts, typos and a Python that is too old answer at once.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence

USAGE = """usage: sfumato COMMAND ...

  train FAMILY METHOD ...    train, e.g. `sfumato train flux lora --help`
  plan FAMILY METHOD ...     count the memory that such a training takes; --json for programs
  tell RUN WORD              ask a run that goes on to save, sample or stop
  rerun RECORD ...           start a recorded run again, and say what has changed since
  generate [FAMILY] ...      make images; with FLUX where no family is named
  inspect DATA ...           show what a model would be trained on: a data set file, or a folder
  cache-latents, cache-text  encode images, or captions, ahead of training
  caption METHOD FOLDER      describe images, e.g. `sfumato caption tags --help`
  resize-images FROM TO      make smaller copies of images
  upscale-images ...         make images of twice the size
  mask FOLDER ...            make loss masks, and a sheet to look at them
  edges, faces ...           draw the edges of an image; cut faces out of images
  merge-captions FOLDER JSON gather captions in one file; merge-tags does so with tags
  clean-captions JSON JSON   clean the captions and tags of such a file
  prepare-buckets ...        note training sizes in such a file, and encode its images
  convert FROM TO            rewrite a whole model: one file, or a folder in diffusers' layout
  join-parts ...             put the parts of Stable Diffusion 3 into one file
  merge FAMILY ...           merge adapters into a model, or with each other
  merge-svd ...              merge adapters of any ranks into one LoRA of a given rank
  merge-models ...           merge whole models
  extract-lora ...           make a LoRA of the difference of two models
  resize-lora ...            bring a LoRA to another rank
  convert-lora ...           rewrite a LoRA with the names that other programs give it
  check-lora FILE            say what an adapter file holds, and which programs load it
  interrogate-lora ...       name the tokens that a LoRA for Stable Diffusion 1 or 2 changes most
  show-metadata ...          show what a file says of itself
  extract-dylora ...         cut a DyLoRA into LoRAs of every smaller rank
  import FILE                make a run file of one of kohya_ss, OneTrainer, AI-toolkit or SimpleTuner
  demo [FOLDER]              see it learn on a toy model, without downloads
  options SCRIPT [--json]    list the options of a script
  sd-scripts FOLDER          write drop-ins for the scripts of sd-scripts into a folder
  --version                  print the version
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the `sfumato` command; return its exit status.

    It is 2 for what the user can mend, and 128 + its number for a signal (130 for Ctrl-C, 143 for SIGTERM).
    """
    return _guarded(_dispatch, argv)


def script(name: str, argv: Sequence[str] | None = None) -> int:
    """Run the script of sd-scripts that has this name; return its exit status."""
    return _guarded(lambda rest: _run_script(name, rest), argv)


def _guarded(action: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    # Drop-ins run in environments that no installer has checked.
    if sys.version_info < (3, 10):  # noqa: UP036
        return _fail(
            f"sfumato needs Python 3.10 or newer; this one is {sys.version.split()[0]}, {sys.executable}"
        )
    from sfumato.console import keep_alive
    from sfumato.errors import StoppedError, UserError
    from sfumato.lean_imports import own_process

    keep_alive()
    if argv is None:
        own_process()
    try:
        return action(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        return _fail(str(error))
    except StoppedError as stop:
        if _is_first_process():  # all stop together
            print(stop, file=sys.stderr)  # noqa: T201
        return stop.status
    except KeyboardInterrupt:
        return 130


def _fail(message: str) -> int:
    # Processes that were started together mostly fail alike. Then the first one speaks, and the launcher ends
    # the others while they wait; one that failed alone is heard a moment later.
    if not _is_first_process():
        time.sleep(2)
    from sfumato.console import printable, shortened

    print(f"error: {shortened(printable(message))}", file=sys.stderr)  # noqa: T201
    return 2


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") in ("", "0")


def _dispatch(argv: Sequence[str]) -> int:
    from sfumato.cli.options.flags import did_you_mean
    from sfumato.errors import UserError

    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")  # noqa: T201
        return 0 if argv else 2
    name, *rest = argv
    if name not in _COMMANDS:
        raise UserError(f"there is no command {name!r}{did_you_mean(name, _COMMANDS)}; see sfumato --help")
    return _COMMANDS[name](rest)


def _train(argv: Sequence[str]) -> int:
    from sfumato.cli.scripts import script_for
    from sfumato.cli.start import start
    from sfumato.errors import UserError

    if len(argv) < 2 or argv[0].startswith("-"):
        raise UserError("write sfumato train FAMILY METHOD ..., e.g. sfumato train flux lora --help")
    family, method, *rest = argv
    row = script_for("train", family, method)
    return start(row, rest, prog=f"sfumato train {family} {method}", as_command=True)


def _plan(argv: Sequence[str]) -> int:
    from sfumato.cli.commands import WORK
    from sfumato.cli.scripts import script_for
    from sfumato.cli.start import start
    from sfumato.errors import UserError

    if len(argv) < 2 or argv[0].startswith("-"):
        raise UserError("write sfumato plan FAMILY METHOD and the options that the training has")
    family, method, *rest = argv
    options = [text for text in rest if text != "--json"]
    work = WORK["plan" if options == rest else "plan --json"]
    prog = f"sfumato plan {family} {method}"
    return start(script_for("train", family, method), options, prog=prog, as_command=True, work=work)


def _generate(argv: Sequence[str]) -> int:
    from sfumato.cli.scripts import script_for, script_named
    from sfumato.cli.start import start

    if argv and not argv[0].startswith("-"):
        family, *rest = argv
        return start(
            script_for("generate", family, ""), rest, prog=f"sfumato generate {family}", as_command=True
        )
    return start(script_named("flux_minimal_inference"), argv, prog="sfumato generate", as_command=True)


def _caption(argv: Sequence[str]) -> int:
    from sfumato.cli.scripts import script_for
    from sfumato.cli.start import start
    from sfumato.errors import UserError

    if not argv or argv[0].startswith("-"):
        raise UserError("write sfumato caption METHOD FOLDER ..., e.g. sfumato caption tags --help")
    method, *rest = argv
    return start(script_for("caption", "", method), rest, prog=f"sfumato caption {method}", as_command=True)


def _merge(argv: Sequence[str]) -> int:
    from sfumato.cli.scripts import script_for
    from sfumato.cli.start import start
    from sfumato.errors import UserError

    if not argv or argv[0].startswith("-"):
        raise UserError("write sfumato merge FAMILY ..., e.g. sfumato merge flux --help")
    family, *rest = argv
    return start(script_for("merge", family, ""), rest, prog=f"sfumato merge {family}", as_command=True)


def _tool(command: str, family: str = "") -> Callable[[Sequence[str]], int]:
    """Return what runs the one script that a sub-command stands for."""

    def run(argv: Sequence[str]) -> int:
        from sfumato.cli.scripts import script_for
        from sfumato.cli.start import start

        return start(script_for(command, family, ""), argv, prog=f"sfumato {command}", as_command=True)

    return run


def _demo(argv: Sequence[str]) -> int:
    from sfumato.cli.requirements import check_requirements

    check_requirements()
    from sfumato.demo.main import main as demo

    return demo(list(argv))


def _options(argv: Sequence[str]) -> int:
    from sfumato.cli.listing import main as list_options

    return list_options(argv)


def _tell(argv: Sequence[str]) -> int:
    from sfumato.cli.tell import main as tell

    return tell(argv)


def _rerun(argv: Sequence[str]) -> int:
    from sfumato.cli.rerun import main as rerun

    return rerun(argv)


def _drop_ins(argv: Sequence[str]) -> int:
    from sfumato.cli.dropins import main as write_drop_ins

    return write_drop_ins(argv)


def _version(_: Sequence[str]) -> int:
    from importlib.metadata import PackageNotFoundError, version

    try:
        print("sfumato", version("sfumato"))  # noqa: T201
    except PackageNotFoundError:
        print("sfumato, run from a folder without being installed")  # noqa: T201
    return 0


def _run_script(name: str, argv: Sequence[str]) -> int:
    from sfumato.cli.scripts import script_named
    from sfumato.cli.start import start

    return start(script_named(name), argv, prog=f"{name}.py")


_TOOLS = (
    "inspect", "cache-latents", "cache-text", "resize-images", "upscale-images", "edges", "faces",
    "mask", "merge-captions", "merge-tags", "clean-captions", "prepare-buckets",
    "convert", "merge-models", "extract-lora", "resize-lora", "merge-svd",
    "check-lora", "show-metadata", "extract-dylora", "import",
)  # fmt: skip
"""Sub-commands that are one script each."""

_COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "account": _plan,  # its name in version 0.1
    "tell": _tell,
    "rerun": _rerun,
    "generate": _generate,
    "caption": _caption,
    "merge": _merge,
    **{name: _tool(name) for name in _TOOLS},
    "join-parts": _tool("join-parts", "sd3"),
    "interrogate-lora": _tool("interrogate-lora", "sd"),
    "convert-lora": _tool("convert-lora", "flux"),
    "demo": _demo,
    "options": _options,
    "sd-scripts": _drop_ins,
    "--version": _version,
}

if __name__ == "__main__":
    sys.exit(main())
