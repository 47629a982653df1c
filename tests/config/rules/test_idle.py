"""Options that ask for something and yet change nothing in the company that they are in."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.cli.scripts import script_named
from sfumato.config.rule import Rule, given, idle
from sfumato.config.rules.asked import Asked
from sfumato.config.rules.evaluation import acts_with, as_json, idle_lines, idle_options, idle_with
from sfumato.config.rules.tables import rules_for

HUBER = {"loss_type": "huber"}


def idle_of(script: str, values: dict[str, Any]) -> list[str]:
    """Return what a person is told who gives these values, for the options that alone have no effect."""
    row = script_named(script)
    defaults = {name: option.default for name, option in row.options().items()}
    return idle_lines(idle_options(rules_for(row), Asked({**defaults, **values}, defaults)))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({}, []),
        ({"weighting_scheme": "cosmap"}, []),
        ({"weighting_scheme": "cosmap", "model_prediction_type": "raw"}, ["weighting_scheme"]),
        ({"weighting_scheme": "mode", "timestep_sampling": "shift"}, ["weighting_scheme"]),
        ({"logit_mean": 0.5, "logit_std": 2.0}, ["logit_mean", "logit_std"]),
        ({"weighting_scheme": "logit_normal", "logit_mean": 0.5}, []),
        ({"discrete_flow_shift": 1.0, "timestep_sampling": "uniform"}, ["discrete_flow_shift"]),
        ({"sigmoid_scale": 2.0}, ["sigmoid_scale"]),
        ({"sigmoid_scale": 2.0, "timestep_sampling": "flux_shift"}, []),
        ({"huber_c": 0.5}, ["huber_c"]),
        ({**HUBER, "huber_schedule": "constant", "huber_c": 0.5, "huber_scale": 2.0}, []),
        ({"ip_noise_gamma_random_strength": True}, ["ip_noise_gamma_random_strength"]),
    ],
)
def test_flow_options_that_do_nothing_are_named(values: dict[str, Any], names: list[str]) -> None:
    assert [line.split()[0] for line in idle_of("flux_train_network", values)] == [f"--{n}" for n in names]


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"noise_offset": 0.1, "noise_offset_random_strength": True}, []),
        ({"noise_offset_random_strength": True}, ["noise_offset_random_strength"]),
        ({"multires_noise_discount": 0.5}, ["multires_noise_discount"]),
        ({"multires_noise_discount": 0.5, "multires_noise_iterations": 6}, []),
        ({**HUBER, "huber_scale": 0.5}, ["huber_scale"]),
        ({**HUBER, "huber_scale": 0.5, "huber_schedule": "constant"}, []),
        ({"huber_c": 0.5, "min_snr_gamma": 5.0}, ["huber_c"]),
        (
            {"lr_scheduler_power": 2.0, "lr_scheduler_timescale": 5},
            ["lr_scheduler_power", "lr_scheduler_timescale"],
        ),
        ({"lr_scheduler_power": 2.0, "lr_scheduler": "polynomial"}, []),
        ({"save_last_n_epochs": 2, "save_every_n_steps": 5}, ["save_last_n_epochs"]),
        ({"save_last_n_epochs": 2, "save_n_epoch_ratio": 5}, []),
        ({"save_last_n_steps": 2, "save_every_n_epochs": 1}, ["save_last_n_steps"]),
        (
            {
                "save_last_n_steps": 2,
                "save_last_n_steps_state": 2,
                "save_every_n_steps": 1,
                "save_state": True,
            },
            [],
        ),
        ({"save_last_n_steps_state": 2, "save_state": True}, ["save_last_n_steps_state"]),
        ({"log_prefix": "a", "log_config": True}, ["log_prefix", "log_config"]),
        ({"log_prefix": "a", "logging_dir": "logs"}, []),
        ({"lr_scheduler": "piecewise_constant", "lr_warmup_steps": 5}, ["lr_warmup_steps"]),
        ({"lr_scheduler": "cosine", "lr_scheduler_type": "StepLR"}, ["lr_scheduler"]),
        ({"unet_lr": 1e-4, "network_train_text_encoder_only": True}, ["unet_lr"]),
    ],
)
def test_other_options_that_do_nothing_are_named(values: dict[str, Any], names: list[str]) -> None:
    assert [line.split()[0] for line in idle_of("train_network", values)] == [f"--{n}" for n in names]


def test_a_line_says_what_an_option_would_act_with() -> None:
    (line,) = idle_of("flux_train_network", {"mode_scale": 2.0})
    assert line == "--mode_scale has no effect without --timestep_sampling sigma --weighting_scheme mode"
    (line,) = idle_of("train_network", {"lr_scheduler": "cosine", "lr_scheduler_type": "StepLR"})
    assert line == "--lr_scheduler has no effect with --lr_scheduler_type"


def test_what_an_option_acts_with_is_data() -> None:
    rules = [
        idle(["a"], given("b"), given("c", 1, 2) + given("d", "x")),
        idle(["a", "never"], given("e")),
        idle(["f"], among=(given("b"),)),
        Rule(("never",), "idle", "nothing asks for it"),
    ]
    assert acts_with(rules, "f") is None
    assert as_json(acts_with(rules, "never")) == []
    assert as_json(acts_with(rules, "a")) == [
        {"b": True, "e": True},
        {"c": [1, 2], "d": ["x"], "e": True},
    ]
    assert as_json(idle_with(rules, "f")) == [{"b": True}]
