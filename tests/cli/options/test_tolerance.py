"""What front-ends write into files is read by every script; what nobody understands stops it if it counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sfumato.cli.options.parse import Parsed, parse
from sfumato.cli.options.tolerance import (
    NAMES_NOTHING,
    READ_AS,
    SAYS_SOMETHING,
    TRAINS_ALIKE,
    WORDS_OF_ITS_OWN,
)
from sfumato.cli.options.toml_file import read_options
from sfumato.cli.scripts import SCRIPTS, script_named
from sfumato.config.scripts.script import Script
from sfumato.errors import UserError
from tests.cli.front_end_values import DEFAULT, REFUSED, UNDERSTOOD

READERS = [script for script in SCRIPTS if script.is_drop_in and "config_file" in script.options()]
TRAINERS = [script for script in READERS if script.command == "train"]


def _file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def _parse(tmp_path: Path, text: str, *argv: str, script: str = "flux_train_network") -> Parsed:
    config = str(_file(tmp_path, text))
    return parse(script_named(script), ["--config_file", config, *argv], prog="prog")


def _wanted(name: str, script: Script, meant: Any) -> Any:
    option = script.options()[name]
    if meant == "uniform or none":
        return "uniform" if "uniform" in (option.accepted or ()) else "none"
    return option.default if meant is DEFAULT else meant


@pytest.mark.parametrize("script", READERS, ids=lambda script: script.name)
def test_what_front_ends_send_is_read_by_every_script_that_has_the_option(
    script: Script, tmp_path: Path
) -> None:
    options = script.options()
    sent = [row for row in UNDERSTOOD if row[0] in options]
    assert len(sent) > 90
    for name, value, meant in sent:
        read = read_options(_file(tmp_path, f"{name} = {value}"), options)
        assert read.unread == {}, (name, value)
        found = read.values.get(name, options[name].default)
        wanted = _wanted(name, script, meant)
        assert (type(found), found) == (type(wanted), wanted), (name, value)


def test_every_option_with_choices_is_asked_about() -> None:
    asked = {name for name, _, _ in UNDERSTOOD}
    chosen = {
        name for script in READERS for name, option in script.options().items() if option.choices is not None
    }
    assert chosen <= asked


@pytest.mark.parametrize("script", TRAINERS, ids=lambda script: script.name)
def test_what_would_change_the_result_and_means_nothing_is_one_line(script: Script, tmp_path: Path) -> None:
    refused = [row for row in REFUSED if row[0] in script.options() and row[0] not in script.without_effect]
    assert len(refused) > 10
    for name, value in refused:
        # Without such a loss, how it is scheduled changes nothing.
        company = "" if name == "loss_type" else 'loss_type = "huber"\n'
        with pytest.raises(UserError, match=rf"run\.toml: {name}: ") as caught:
            _parse(tmp_path, f"{company}{name} = {value}", script=script.name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("script", TRAINERS, ids=lambda script: script.name)
def test_no_zero_in_a_file_stops_a_run(script: Script, tmp_path: Path) -> None:
    names = [name for name in script.options() if name != "base_weights_multiplier"]
    _parse(tmp_path, "".join(f"{name} = 0\n" for name in names), script=script.name)


@pytest.mark.parametrize("name", ["network_dim", "max_token_length"])
def test_the_command_line_is_read_by_the_letter(name: str) -> None:
    with pytest.raises(UserError, match=f"--{name}"):
        parse(script_named("train_network"), [f"--{name}", "75.0"], prog="prog")


@pytest.mark.parametrize("line", ['dynamo_backend = "no"', "max_token_length = 75", 'log_with = ""'])
def test_not_used_is_no_complaint_even_for_a_strict_run(tmp_path: Path, line: str) -> None:
    assert _parse(tmp_path, line, "--strict", script="train_network").warnings == ()


def test_a_value_that_is_read_as_another_is_told_once_and_stops_no_strict_run(tmp_path: Path) -> None:
    parsed = _parse(tmp_path, "max_token_length = 255", "--strict", script="train_network")
    (line,) = parsed.warnings
    assert "run.toml: max_token_length: 255 is read as 225: texts are read in pieces" in line
    assert parsed.run.values()["max_token_length"] == 225
    (line,) = _parse(tmp_path, 'mixed_precision = "fp8"').warnings
    assert "fp8 is read as bf16" in line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('dynamo_backend = "my_compiler"', "--dynamo_backend has no effect without --torch_compile"),
        ('dynamo_backend = "tensorrt"', "--dynamo_backend has no effect without --torch_compile"),
        ('zero_stage = "many"', "--zero_stage has no effect without --deepspeed"),
        ("max_token_length = 100", "--max_token_length has no effect here"),
        ('min_snr_gamma = "much"', "--min_snr_gamma has no effect here"),
        ('sample_sampler = "magic"', "--sample_sampler has no effect without"),
    ],
)
def test_what_is_idle_is_told_as_that_whatever_its_value(tmp_path: Path, line: str, said: str) -> None:
    (warning,) = _parse(tmp_path, line).warnings
    assert said in warning


def test_what_is_not_idle_any_more_must_be_understood(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dynamo_backend: 'my_compiler' is not one of eager"):
        _parse(tmp_path, 'dynamo_backend = "my_compiler"\ntorch_compile = true')


def test_what_changes_no_training_is_left_out_with_a_line_that_says_so(tmp_path: Path) -> None:
    text = 'sample_sampler = "magic"\nsample_every_n_steps = 5'
    parsed = _parse(tmp_path, text)
    (line,) = parsed.warnings
    assert re.search(
        "sample_sampler: 'magic' is not one of ddim.*; it is left out: it only generates previews", line
    )
    assert parsed.run.values()["sample_sampler"] == "ddim"
    with pytest.raises(UserError, match="magic"):
        _parse(tmp_path, text, "--strict")


def test_what_the_command_line_says_anyway_need_not_be_understood(tmp_path: Path) -> None:
    parsed = _parse(tmp_path, 'loss_type = "l3"\nseed = 3', "--loss_type", "l1")
    assert parsed.warnings == ()
    assert parsed.run.values()["loss_type"] == "l1"
    assert parsed.run.from_file == {"seed"}


def test_keys_of_other_scripts_are_one_line(tmp_path: Path) -> None:
    keys = "noise_offset_type epoch block_lr learning_rate_te lowvram lr_restart_cycles"
    (line,) = _parse(tmp_path, "".join(f"{name} = 1\n" for name in keys.split())).warnings
    assert "no such option, ignored: noise_offset_type (did you mean noise_offset?), epoch" in line


@pytest.mark.parametrize(
    "argument",
    ["--sample_prompts=", "--vae=", "--resume=", "--dataset_config=", "--network_weights=", "--log_with="],
)
def test_empty_text_on_the_command_line_is_not_given_and_wins_over_the_file(
    tmp_path: Path, argument: str
) -> None:
    name = argument.strip("-=")
    text = f'{name} = "{"tensorboard" if name == "log_with" else "x"}"'
    assert _parse(tmp_path, text, argument, script="train_network").run.values()[name] is None


def test_empty_parts_of_a_list_on_the_command_line_are_left_out() -> None:
    run = parse(script_named("train_network"), ["--network_args", "", "a=1"], prog="prog").run
    assert run.values()["network_args"] == ("a=1",)


def test_no_value_on_a_command_line_may_be_empty_that_must_be_something() -> None:
    with pytest.raises(UserError, match="--ckpt_path must be given"):
        parse(script_named("flux_minimal_inference"), ["--ckpt_path", ""], prog="prog")
    with pytest.raises(UserError, match="--train_batch_size: '' is not a whole number"):
        parse(script_named("train_network"), ["--train_batch_size="], prog="prog")


def test_what_pages_send_on_the_command_line_is_read() -> None:
    argv = [
        "--max_grad_norm",
        "0.0",
        "--sample_prompts=",
        "--fp8_base",
        "--network_args",
        "a=b",
    ]
    values = parse(script_named("flux_train_network"), argv, prog="prog").run.values()
    assert (values["max_grad_norm"], values["sample_prompts"], values["fp8_base"]) == (0.0, None, True)


def test_the_tables_name_options_that_exist_and_values_that_they_take() -> None:
    options = {name: option for script in READERS for name, option in script.options().items()}
    named = {*READ_AS, *SAYS_SOMETHING, *TRAINS_ALIKE, *WORDS_OF_ITS_OWN, *NAMES_NOTHING}
    assert named <= options.keys()
    for name, readings in READ_AS.items():
        allowed = {value for script in READERS if name in script.options()
                   for value in script.options()[name].choices or ()}  # fmt: skip
        assert {reading.value for reading in readings} - {None} <= allowed
