"""Command lines are read with the manners of sd-scripts' parsers."""

from pathlib import Path
from typing import Any

import pytest

from sfumato.cli.options.flags import make_parser, parse_flags
from sfumato.cli.scripts import script_named
from sfumato.errors import UserError


def _parse(*argv: str, script: str = "flux_train_network") -> dict[str, Any]:
    row = script_named(script)
    return parse_flags(make_parser(row.options().values(), "prog", row.summary), argv)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], {}),
        (["--learning_rate=-1e-7"], {"learning_rate": -1e-7}),
        (["--learning_rate", "-1e-7"], {"learning_rate": -1e-7}),
        (["--logit_mean", "-.5"], {"logit_mean": -0.5}),
        (["--seed", "42"], {"seed": 42}),
        (["--network_args", "a=b", "c=d e"], {"network_args": ("a=b", "c=d e")}),
        (["--network_args"], {"network_args": ()}),
        (["--text_encoder_lr", "1e-5", "0"], {"text_encoder_lr": (1e-5, 0.0)}),
        (["--cache_latents", "--xformers"], {"cache_latents": True, "xformers": True}),
        (["--learning", "1"], {"learning_rate": 1.0}),
        (["--caption_prefix=--x "], {"caption_prefix": "--x "}),
        (["--dataset_config", "a/b.toml"], {"dataset_config": Path("a/b.toml")}),
        (["--max_token_length", "225"], {"max_token_length": 225}),
        (["--zero_stage", "3"], {"zero_stage": 3}),
        (["--lr_warmup_steps", "100"], {"lr_warmup_steps": 100}),
        (["--lr_warmup_steps", "0"], {"lr_warmup_steps": 0}),
        (["--lr_warmup_steps", "0.1"], {"lr_warmup_steps": 0.1}),
        (["--lr_decay_steps", "10%"], {"lr_decay_steps": 0.1}),
        (["--seed", "1", "--seed", "2"], {"seed": 2}),
    ],
)
def test_a_command_line_holds_exactly_what_it_says(argv: list[str], expected: dict[str, Any]) -> None:
    found = _parse(*argv)
    assert found == expected
    assert {name: type(value) for name, value in found.items()} == {n: type(v) for n, v in expected.items()}


def test_an_alpha_given_on_the_command_line_is_a_float_but_the_default_is_an_int() -> None:
    assert isinstance(_parse("--network_alpha", "1")["network_alpha"], float)
    assert isinstance(script_named("flux_train_network").options()["network_alpha"].default, int)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--lerning_rate", "1"], r"unknown option --lerning_rate \(did you mean --learning_rate\?\)"),
        (["--nonsense_qqq"], "unknown option --nonsense_qqq$"),
        (["stray"], "unexpected argument 'stray'"),
        (["--seed", "x"], "--seed: 'x' is not a whole number"),
        (["--seed", "1.0"], "--seed: '1.0' is not a whole number"),
        (["--lr_warmup_steps", "1.5"], "--lr_warmup_steps: '1.5' is not a number of steps"),
        (["--huber_c", "0,0001"], "--huber_c: '0,0001' is not a number; write 0.0001"),
        (["--huber_c", "nan"], "--huber_c: 'nan' is not a number"),
        (["--lr_decay_steps", "nan%"], "--lr_decay_steps: 'nan%' is not a number of steps"),
        (["--loss_type", "l3"], "--loss_type: invalid choice: 'l3'"),
        (["--save_model_as", "None"], "--save_model_as: invalid choice"),
        (["--cache_l"], "ambiguous option: --cache_l"),
        (["--seed"], "--seed: expected one argument"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        _parse(*argv)
    assert "\n" not in str(caught.value)


def test_the_value_behind_a_mistyped_option_is_not_repeated() -> None:
    for argv in (["--wandb_apy_key", "s3cret"], ["--wandb_apy_key=s3cret"]):
        with pytest.raises(UserError, match="did you mean --wandb_api_key") as caught:
            _parse(*argv)
        assert "s3cret" not in str(caught.value)


def test_a_typo_is_named_before_a_missing_option_is() -> None:
    with pytest.raises(UserError, match="did you mean --ckpt_path"):
        _parse("--ckpt_pth", "x", script="flux_minimal_inference")


def test_help_has_every_option_with_its_text_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _parse("--help")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in script_named("flux_train_network").options():
        assert f"--{name}" in text
    assert "10%" in text
    assert "[2e-06]" in text
