"""Prompt lines and files."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sfumato.errors import UserError
from sfumato.sampling.prompts.files import read_prompts
from sfumato.sampling.prompts.prompt_options import PromptOptions, parse_line
from sfumato.sampling.request import Request, random_seed

DEFAULTS = Request("", negative_prompt="old", width=64, height=64, steps=9, seed=7)


@pytest.fixture(autouse=True)
def _messages_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)


def test_a_line_without_options_is_all_prompt() -> None:
    assert parse_line("  a cat, (very) fluffy -- or a dog - who knows ") == PromptOptions(
        "a cat, (very) fluffy -- or a dog - who knows"
    )


def test_every_option_of_a_line_is_read() -> None:
    line = "a cat --n bad, ugly --w 512 --H 768 --d 42 --s 28 --l 4.5 --g 3 --c 2 --ss Euler --m 0.5,1"
    assert parse_line(line) == PromptOptions(
        prompt="a cat",
        negative_prompt="bad, ugly",
        width=512,
        height=768,
        seed=42,
        steps=28,
        scale=4.5,
        guidance=3.0,
        cfg_scale=2.0,
        sampler="Euler",
        multipliers=(0.5, 1.0),
    )


def test_a_prompt_that_looks_like_an_option_is_a_prompt() -> None:
    assert parse_line("w 512 --h 64") == PromptOptions("w 512", height=64)
    assert parse_line("--w 512") == PromptOptions("", width=512)


@pytest.mark.parametrize(("given", "steps"), [("0", 1), ("5000", 1000), ("12", 12)])
def test_steps_stay_in_range(given: str, steps: int) -> None:
    assert parse_line(f"x --s {given}").steps == steps


def test_a_dash_takes_the_negative_prompt_back() -> None:
    assert parse_line("x --n -").request(DEFAULTS).negative_prompt == ""
    assert parse_line("x").request(DEFAULTS).negative_prompt == "old"


@pytest.mark.parametrize("piece", ["w abc", "d", "l nan", "m 1,x", "s 2.5"])
def test_a_value_that_is_no_number_is_named(piece: str) -> None:
    name, _, value = piece.partition(" ")
    with pytest.raises(UserError, match=f"--{name} is '{value}'; give"):
        parse_line(f"a cat --{piece}")


def test_an_unknown_option_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert parse_line("a cat --sss euler --w 8").prompt == "a cat"
    assert "--sss is left out; known here are --w, --h, --d, --s," in caplog.text


@pytest.mark.parametrize("line", ["x -w 64 -h 64", "x --n bad -w 64", "-w 64"])
def test_options_with_one_dash_are_text_and_one_warning(line: str, caplog: pytest.LogCaptureFixture) -> None:
    found = parse_line(line)
    assert (found.width, found.height) == (None, None)
    assert [record.getMessage() for record in caplog.records] == [
        "-w in a prompt is text; options have two dashes: --w"
    ]


def test_a_seed_of_minus_one_is_a_seed_that_nobody_chose() -> None:
    assert parse_line("x --d -1").seed is None
    assert parse_line("x --d -1").request(DEFAULTS).seed == 7


def test_scale_means_what_the_model_knows_best() -> None:
    line = parse_line("x --l 5")
    assert line.request(DEFAULTS, "guidance") == Request("x", "old", 64, 64, 9, 7, guidance=5.0)
    assert line.request(DEFAULTS, "cfg_scale") == Request("x", "old", 64, 64, 9, 7, cfg_scale=5.0)


def test_scale_beside_distilled_guidance_is_classifier_free() -> None:
    request = parse_line("x --l 5 --g 2").request(DEFAULTS, "guidance")
    assert (request.guidance, request.cfg_scale) == (2.0, 5.0)


def test_text_files_skip_blank_lines_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat --w 64\n\n# no\nein Käfer\n".encode())
    assert read_prompts(path) == [PromptOptions("a cat", width=64), PromptOptions("ein Käfer")]


def test_toml_subsets_are_merged_over_the_prompt_table(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(
        '[prompt]\nwidth = 64\nscale = 3\nnegative_prompt = "bad"\n'
        '[[prompt.subset]]\nprompt = "a"\nseed = 1\n'
        '[[prompt.subset]]\nprompt = "b"\nwidth = 32\nsample_steps = 4\n'
    )
    assert read_prompts(path) == [
        PromptOptions("a", "bad", width=64, scale=3.0, seed=1),
        PromptOptions("b", "bad", width=32, scale=3.0, steps=4),
    ]


def test_a_toml_without_subsets_is_one_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text('[prompt]\nprompt = "a"\nguidance_scale = 2.5\n')
    assert read_prompts(path) == [PromptOptions("a", guidance=2.5)]


def test_json_mixes_lines_and_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "prompts.json"
    entry = {"prompt": "b", "sample_sampler": "heun", "seed": None, "sample_step": 3}
    path.write_text(json.dumps(["a --d 4", entry]))
    assert read_prompts(path) == [PromptOptions("a", seed=4), PromptOptions("b", sampler="heun")]
    assert "key sample_step of a prompt is left out; did you mean sample_steps?" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("p.yaml", "x", r"ends in '\.yaml'; use one of \.txt, \.toml, \.json"),
        ("p.toml", "prompt = ", "is not valid"),
        ("p.toml", "prompt = 3", r"\[prompt\] is 3"),
        ("p.toml", "[prompt]\nsubset = 3", r"prompt.subset is 3; write it with double brackets"),
        ("p.json", "{}", "no list"),
        ("p.json", "[3]", "entry is 3"),
        ("p.json", '[{"width": 2.5}]', r"p\.json: prompt option width is '2\.5'; give a whole number"),
        ("p.txt", "a --w b", r"p\.txt: prompt option --w is 'b'"),
    ],
)
def test_a_bad_file_is_one_clear_line(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=complaint) as error:
        read_prompts(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "content"), [("p.txt", ""), ("p.txt", "# only this\n"), ("p.json", "[]")])
def test_a_file_may_hold_no_prompt(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert read_prompts(path) == []


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize("bad", [{"width": 0}, {"height": -8}, {"steps": 0}, {"seed": -1}])
def test_a_request_that_cannot_be_made_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(bad))} is {next(iter(bad.values()))}; use"):
        Request("x", **bad)  # type: ignore[arg-type]


def test_random_seeds_differ_and_fit_32_bits() -> None:
    seeds = {random_seed() for _ in range(50)}
    assert len(seeds) > 45
    assert max(seeds) < 2**32
