"""Make a virtual environment beside this file, install what constraints.txt pins, run a command in it.

Needs nothing but Python 3.10 or newer. The first call takes a minute or more; later calls start at once.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OLDEST_PYTHON = (3, 10)
TORCH_INDEX = "https://download.pytorch.org/whl/"
INDEX_TAG = re.compile(r"cpu|cu\d{3}|rocm\d[\d.]*|xpu")
NEEDING = (
    "optimizer_type",
    "log_with",
    "network_module",
    "config_file",
    "use_8bit_adam",
    "use_lion_optimizer",
)
"""Options whose value decides which packages a command needs."""

OLDER = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
"""Switches that are older spellings of an optimizer's name."""

CUDA_TAGS = ((13.0, "cu130"), (12.8, "cu128"), (12.6, "cu126"))
"""CUDA versions that PyTorch is built for, newest first."""

USAGE = """\
usage: python quickstart.py [--torch BUILD] COMMAND ...

  demo               train a LoRA on a toy FLUX and look at the images (about a minute)
  test ...           run the tests (--quick: none of whole scripts or models); what follows goes to pytest
  install EXTRA ...  only make the environment: for every optimizer, or with these extras of pyproject.toml
  FILE.py ...        run a script in the environment, e.g. sd-scripts/flux_train_network.py
  anything else      a sfumato command: train, generate, options, ...

What a command needs besides (bitsandbytes for --optimizer_type adamw8bit, wandb for --log_with wandb, also
where a --config_file says so) is installed before it starts.

  --torch BUILD      cpu, cu128, cu130, rocm6.4 ... (a build from PyTorch's own index), or what pip
                     understands, e.g. torch==2.6.0. Without it: CUDA where nvidia-smi finds a card, else CPU
"""


class SetupError(Exception):
    """What the person at the keyboard can mend, in one line."""


@dataclass(frozen=True)
class Source:
    """One way to install torch: pip's arguments, and how to call it."""

    arguments: tuple[str, ...]
    title: str
    index: str | None = None


def main(argv: Sequence[str]) -> int:
    """Make the environment ready for the command, then run it and pass on its exit code."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, usage="python quickstart.py [--torch BUILD] COMMAND ..."
    )
    parser.add_argument("--torch")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    if options.help or not options.command:
        sys.stdout.write(USAGE)
        return 0
    try:
        python = prepare(ROOT, options.torch, needs_of(options.command, ROOT))
    except SetupError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if options.command[0] == "install":
        return 0
    return run(command_line(python, options.command))


def needs_of(command: Sequence[str], root: Path) -> dict[str, str]:
    """Return the extras of pyproject.toml that a command needs, each with what asks for it."""
    if command[0] == "test":
        return {"dev": "the tests"}
    if command[0] == "install":
        return dict.fromkeys(command[1:] or usual_extras(), "commands to come")
    if Path(command[0]).name == "make_base.py":
        return {"demo": command[0]}
    given = options_in(command[1:])
    if "config_file" in given:
        given = {**options_in_file(given["config_file"]), **given}
    found = {extra_for(name, value): f"--{name} {value}" for name, value in given.items()}
    return {extra: reason for extra, reason in found.items() if extra}


def usual_extras(platform: str = sys.platform) -> list[str]:
    """Return the extras of an environment that is made for commands to come: what every optimizer needs."""
    return ["optimizers"] if platform == "darwin" else ["adam8bit", "optimizers"]


def options_in(words: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line that may need a package, with their values; the last one wins."""
    given = {}
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        start, equals, value = word.partition("=")
        if not start.startswith("--") or start == "--":
            continue
        name = next((name for name in NEEDING if name.startswith(start[2:])), "")
        if name in OLDER:
            given["optimizer_type"] = OLDER[name]
        elif name:
            given[name] = value if equals else following
    return given


def options_in_file(config_file: str) -> dict[str, str]:
    """Return the same options of a configuration file; none if it cannot be read, which the command says."""
    path = Path(config_file if config_file.endswith(".toml") else f"{config_file}.toml")
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError):
        return {}
    # Python 3.10 has no library for TOML, and all that counts are plain lines.
    lines = re.findall(r"""^\s*(\w+)\s*=\s*["']?([^"'#\n]*)""", text, re.MULTILINE)
    found = {name: value.strip() for name, value in lines if name in NEEDING and name != "config_file"}
    for name, optimizer in OLDER.items():
        if found.pop(name, "") in ("true", "1"):
            found["optimizer_type"] = optimizer
    return found


def extra_for(option: str, value: str) -> str:
    """Return the extra that an option's value needs, or an empty text."""
    if option == "log_with":
        return "wandb" if value in ("wandb", "all") else ""
    if option == "network_module":
        return "lycoris" if value.split(".")[0] == "lycoris" else ""
    if option == "optimizer_type":
        sys.path.insert(0, str(ROOT))
        from sfumato.config.run.training import optimizer_names  # it needs no package

        return optimizer_names.extra_for(value) or ""
    return ""


def command_line(python: Path, command: Sequence[str]) -> list[str]:
    """Translate what follows quickstart's own options into a call of the environment's Python."""
    if command[0] == "test":
        several = ["--numprocesses=auto", "--maxprocesses=4", "--dist=loadfile"]
        return [str(python), "-m", "pytest", f"--rootdir={ROOT}", *several, *command[1:]]
    if command[0].endswith(".py"):
        return [str(python), *command]
    return [str(python), "-m", "sfumato", *command]


def run(arguments: Sequence[str]) -> int:
    """Run a command in place of this process, where the system can, so that signals reach it directly."""
    if arguments[1:3] == ["-m", "pytest"]:
        os.chdir(ROOT)
        # Else each worker, and each process that a test starts, would compile every module it imports again.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    if os.name != "nt":
        sys.stdout.flush()
        os.execv(arguments[0], list(arguments))
    with subprocess.Popen(list(arguments)) as process:
        while process.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):  # the child got it too: it saves, then ends
                process.wait()
    return process.returncode


def prepare(root: Path, torch: str | None, needs: Mapping[str, str]) -> Path:
    """Return the environment's Python, after installing whatever it lacks.

    A stamp inside the environment records what was installed from which files: a second call does nothing.

    Args:
        needs: extras of pyproject.toml, each with what asks for it.
    """
    folder = root / ".venv"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = read_stamp(folder)
    pin = pinned(root, "torch")
    chosen = torch or stamp.get("torch", "auto")
    had = stamp.get("extras", [])
    lacking = lacking_extras(root, had, needs)
    base = {"files": fingerprint(root), "torch": chosen, "pin": pin}
    wanted = {**base, "extras": sorted({*had, *lacking})}
    if python.exists() and stamp == wanted:
        return python
    start = time.monotonic()
    if not python.exists():
        make_environment(folder)
        stamp = {}
    if stamp != {**base, "extras": had}:  # otherwise the environment stays good if an extra cannot be had
        stamp_file(folder).unlink(missing_ok=True)
    if (stamp.get("torch"), stamp.get("pin")) != (chosen, pin):
        install_torch(python, chosen, pin)
    if stamp != {**base, "extras": had}:
        say("installing the other packages")
    for extra, reason in lacking.items():
        say(f"installing {', '.join(packages_of(root)[extra])} for {reason}")
    install_project(root, python, wanted["extras"])
    write_stamp(folder, wanted)
    say(f"ready after {time.monotonic() - start:.0f} s")
    return python


def lacking_extras(root: Path, had: Sequence[str], needs: Mapping[str, str]) -> dict[str, str]:
    """Return the needs whose packages no extra that is installed has brought."""
    packages = packages_of(root)
    if unknown := [extra for extra in needs if extra not in packages]:
        raise SetupError(f"there is no extra {unknown[0]!r}; pyproject.toml has {', '.join(packages)}")
    there = {package for extra in had for package in packages.get(extra, ())}
    return {extra: reason for extra, reason in needs.items() if not there.issuperset(packages[extra])}


def packages_of(root: Path) -> dict[str, list[str]]:
    """Return the packages of each extra of pyproject.toml."""
    text = (root / "pyproject.toml").read_text("utf-8")
    section = text.partition("[project.optional-dependencies]\n")[2].partition("\n[")[0]
    lists = re.findall(r"^([\w-]+) = \[(.*?)\]", section, re.MULTILINE | re.DOTALL)
    return {extra: re.findall(r'"([\w-]+)[^"]*"', listed) for extra, listed in lists}


def fingerprint(root: Path) -> str:
    """Return a hash of the files that say what is to be installed, and of where they lie."""
    digest = hashlib.sha256(str(root).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


def stamp_file(folder: Path) -> Path:
    """Return where an environment records what was installed into it."""
    return folder / "sfumato-quickstart.json"


def read_stamp(folder: Path) -> dict:
    """Return what the last complete installation recorded; nothing if there was none."""
    try:
        return json.loads(stamp_file(folder).read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def write_stamp(folder: Path, stamp: dict) -> None:
    """Record a complete installation."""
    temporary = stamp_file(folder).with_suffix(".tmp")
    temporary.write_text(json.dumps(stamp), "utf-8")
    temporary.replace(stamp_file(folder))


def make_environment(folder: Path) -> None:
    """Make a virtual environment, in place of a broken one if need be."""
    say(f"making {folder}")
    result = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=False)
    if result.returncode:
        raise SetupError(f"{folder} could not be made; on Debian or Ubuntu: apt install python3-venv")


def install_torch(python: Path, chosen: str, pin: str) -> None:
    """Install torch from the first source that has it."""
    for source in torch_sources(chosen, pin, sys.platform, cuda_version()):
        if source.index and not is_reachable(source.index):
            say(f"{source.index} does not answer")
            continue
        say(f"installing {source.title}")
        if pip(python, "install", *source.arguments, is_trial="--no-index" in source.arguments):
            return
    raise SetupError(f"torch could not be installed ({chosen}); name a build with --torch, e.g. --torch cpu")


def torch_sources(chosen: str, pin: str, platform: str, cuda: float | None) -> list[Source]:
    """Return the ways to install torch on this machine, the best one first.

    Args:
        chosen: "auto", the name of one of PyTorch's indexes, or a requirement.
        pin: the tested version, e.g. "torch==2.13.0".
        platform: as `sys.platform`.
        cuda: newest CUDA that the driver runs, or None without an NVIDIA card.
    """
    registry = Source((pin,), f"{pin} from the package registry")
    if INDEX_TAG.fullmatch(chosen):
        return [indexed(pin, chosen)]
    if chosen != "auto":
        return [Source((chosen,), chosen)]
    if platform == "darwin":
        return [registry]
    if cuda is None:
        # The registry's wheel is the small CPU build on Windows, but a CUDA build of several GB on Linux.
        # A wheel that pip is configured to find on disk is better than either: it needs no network.
        local = Source(("--no-index", "--no-deps", pin), f"{pin} from a local wheel, if there is one")
        return [registry] if platform == "win32" else [local, indexed(pin, "cpu"), registry]
    fitting = [indexed(pin, tag) for version, tag in CUDA_TAGS if version <= cuda]
    if platform == "win32":
        return fitting or [indexed(pin, CUDA_TAGS[-1][1])]
    # The registry's Linux wheel is built for the newest CUDA and so wants a driver that runs it.
    return [registry, *fitting] if cuda >= CUDA_TAGS[0][0] else [*fitting, registry]


def indexed(pin: str, tag: str) -> Source:
    """Return one of PyTorch's own indexes as a source."""
    index = TORCH_INDEX + tag
    return Source((pin, "--index-url", index), f"{pin} ({tag} build)", index)


def cuda_version(ask: Callable[[], str] | None = None) -> float | None:
    """Return the newest CUDA version that the NVIDIA driver runs, or None where there is no card."""
    report = (ask or ask_nvidia_smi)()
    match = re.search(r"CUDA Version:\s*(\d+\.\d+)", report)
    return float(match.group(1)) if match else None


def ask_nvidia_smi() -> str:
    """Return what nvidia-smi prints; nothing where it is missing, hangs or finds no card."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        result = subprocess.run(
            [program], capture_output=True, encoding="utf-8", errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


def is_reachable(index: str, wait_s: float = 5) -> bool:
    """Tell whether an index answers, so that a closed network costs seconds and not pip's many retries."""
    try:
        with urllib.request.urlopen(f"{index}/torch/", timeout=wait_s):
            return True
    except OSError:
        return False


def install_project(root: Path, python: Path, extras: Sequence[str]) -> None:
    """Install this folder in editable form with everything it needs, at the tested versions."""
    # torch is installed already, perhaps at a version that was asked for: its pin must not bring another.
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    constraints = python.parents[1] / "constraints-without-torch.txt"
    constraints.write_text("\n".join(line for line in lines if not line.startswith("torch==")), "utf-8")
    target = f"{root}[{','.join(extras)}]" if extras else str(root)
    if not pip(python, "install", "--constraint", str(constraints), "--editable", target):
        raise SetupError("pip failed (see above); run the same command again when the cause is mended")


def pinned(root: Path, name: str) -> str:
    """Return the line of constraints.txt that pins a package, e.g. "torch==2.13.0"."""
    lines = (root / "constraints.txt").read_text("utf-8").splitlines()
    return next(line.strip() for line in lines if line.startswith(f"{name}=="))


def pip(python: Path, *arguments: str, is_trial: bool = False) -> bool:
    """Run pip in the environment and tell whether it succeeded; a trial may fail and so says nothing."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *arguments]
    if is_trial or not sys.stderr.isatty():  # its bars are for people
        command.append("--quiet")
    return (
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL if is_trial else None).returncode == 0
    )


def say(message: str) -> None:
    """Tell the person who waits what is going on."""
    sys.stderr.write(f"quickstart: {message}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    if sys.version_info < OLDEST_PYTHON:
        found = ".".join(map(str, sys.version_info[:3]))
        sys.exit(f"error: sfumato needs Python 3.10 or newer; this is {found}")
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
