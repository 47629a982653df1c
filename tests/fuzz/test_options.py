"""Every option of every script takes a value, or refuses it in one line before anything is loaded.

Each value is read and seen by its section; some, drawn at random, go through all checks of their script, with
options beside them that make a run possible. Scripts that train are checked to the end, on tiny models.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.cli.options.flags import read_text
from sfumato.cli.options.toml_file import read_options
from sfumato.cli.scripts import SCRIPTS, script_named
from sfumato.cli.start import start
from sfumato.config.public import to_toml
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.run import Run
from sfumato.config.scripts.option import Option
from sfumato.config.scripts.script import Script
from sfumato.errors import UserError
from sfumato.training.core import distributed
from sfumato.training.run.setup import prepare
from tests import tiny
from tests.fuzz.conftest import IS_LONG
from tests.fuzz.option_values import OF_FILES, values_of
from tests.fuzz.outcomes import outcome

NUM_DRAWN = settings().max_examples if IS_LONG else 16
"""Values that go through all checks of a script, on the command line and in files."""

MODELS: dict[str, Callable[[Path], Any]] = {"flux": tiny.flux, "sd": tiny.sd, "sdxl": tiny.sdxl}
MODULES = {"flux": "networks.lora_flux", "sd": "networks.lora", "sdxl": "networks.lora"}

OPTIONS = [(script.name, option) for script in SCRIPTS for option in script.options().values()]
SPOKEN = [(name, option, value) for name, option in OPTIONS for value in values_of(option)]
OF_FILE = [(name, option) for name, option in OPTIONS if "config_file" in script_named(name).options()]
WRITTEN = [(name, option, value) for name, option in OF_FILE for value in OF_FILES]


@dataclass
class Place:
    """The current folder, which is full of odd files, with tiny models and images beside it."""

    folder: Path
    models: dict[str, list[str]] = field(default_factory=dict)

    def possible(self, script: Script) -> list[str]:
        """Return the options of a run that can be prepared; other scripts are given what they insist on."""
        if script.command != "train":
            required = (option for option in script.options().values() if option.is_required)
            return [word for option in required for word in words(option, "missing/x")]
        if script.family not in self.models:
            made = MODELS[script.family](self.folder.parent / script.family)
            self.models[script.family] = made.arguments
        adapter = ["--network_module", MODULES[script.family]] if script.method == "lora" else []
        places = ["--train_data_dir", str(self.folder.parent / "images"), "--output_dir", "out"]
        few = ["--output_name", "x", "--max_train_steps", "2", "--resolution", "64", "--seed", "1"]
        return [*self.models[script.family], *adapter, *places, *few]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("odd") / "here"
    (folder / "folder").mkdir(parents=True)
    for name in ("fifo", "fifo.toml"):
        os.mkfifo(folder / name)
    (folder / "text").write_text("a cat\n")
    (folder / "odd.toml").write_text("a = 1\n[[datasets]]\n")
    (folder / "list.json").write_text("[1, 2]")
    tiny.pictures(folder.parent / "images" / "1_cat", 2, captions=".caption")
    return Place(folder)


@pytest.fixture(autouse=True)
def _here(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.folder)


def words(option: Option, value: str) -> list[str]:
    """Return the words of a command line that give an option a value; a switch takes none."""
    if not option.flags[0].startswith("-"):
        return [value]
    return option.flags[:1] if option.kind == "bool" else [f"{option.flags[0]}={value}"]


def check(place: Place, name: str, *argv: str) -> None:
    """Do what a script does before it loads something; nothing but a refusal in one line may come of it."""
    script = script_named(name)
    work = _prepare if script.command == "train" else lambda _run: 0
    line = [*place.possible(script), *argv]
    outcome(f"the options of {name}", lambda: _start(script, line, work))


def _start(script: Script, line: list[str], work: Callable[[Run], int]) -> None:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        start(script, line, prog=script.name, work=work)


def _prepare(run: Run) -> int:
    prepare(run, distributed.start(run[DistributedConfig]))
    return 0


def test_every_section_takes_or_refuses_every_value() -> None:
    seen = {(option.section, option.dest): option for _, option in OPTIONS}
    for option in seen.values():
        for text in () if option.kind == "bool" else values_of(option):
            with contextlib.suppress(ValueError):
                value = read_text(option.kind, text)
                with contextlib.suppress(UserError):
                    option.section(**{option.dest: (value,) if option.is_list else value})


@pytest.mark.parametrize("name", sorted({name for name, _ in OF_FILE}))
def test_every_file_is_read_or_says_which_values_are_not(name: str, tmp_path: Path) -> None:
    options, file = script_named(name).options(), tmp_path / "options.toml"
    for value in OF_FILES:
        file.write_text(to_toml(dict.fromkeys(options, value)), "utf-8")
        found = read_options(file, options)
        assert not found.stray
        assert found.values.keys().isdisjoint(found.unread)


@given(st.sampled_from(SPOKEN))
@settings(max_examples=NUM_DRAWN)
def test_a_value_on_the_command_line(place: Place, tried: tuple[str, Option, str]) -> None:
    name, option, value = tried
    check(place, name, *words(option, value))


@given(st.sampled_from(WRITTEN))
@settings(max_examples=NUM_DRAWN)
def test_a_value_in_a_file(place: Place, tried: tuple[str, Option, object]) -> None:
    name, option, value = tried
    (place.folder / "options.toml").write_text(to_toml({option.dest: value}), "utf-8")
    check(place, name, "--config_file", "options.toml")
