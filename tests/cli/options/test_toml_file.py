"""Configuration files are read with the tolerance that front-ends need, and no more."""

import re
from pathlib import Path

import pytest

from sfumato.cli.options.tolerance import ZERO_MEANS_UNSET
from sfumato.cli.options.toml_file import FileOptions, flatten, read_options, toml_path
from sfumato.cli.scripts import script_named
from sfumato.errors import UserError

SCRIPTS = (
    "sd3_train_network",
    "flux_train_network",
    "train_textual_inversion",
    "sdxl_train_control_net_lllite",
)
OPTIONS = {name: option for script in SCRIPTS for name, option in script_named(script).options().items()}


def _read(tmp_path: Path, text: str) -> FileOptions:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return read_options(path, OPTIONS)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("cache_latents = true", True),
        ("cache_latents = 1", True),
        ("cache_latents = 0", False),
        ("bucket_reso_steps = 64.0", 64),
        ('bucket_reso_steps = "64.0"', 64),
        ('cache_latents = "True"', True),
        ('cache_latents = "0"', False),
        ('save_every_n_epochs = "2"', 2),
        ('learning_rate = "1e-4"', 1e-4),
        ("learning_rate = 1", 1.0),
        ("max_grad_norm = 0", 0.0),
        ("max_data_loader_n_workers = 0", 0),
        ("seed = 0", 0),
        ('network_args = ["a=1", "b=2"]', ("a=1", "b=2")),
        ('network_args = "a=1"', ("a=1",)),
        ("network_args = \"['a=1', 'betas=[0.9, 0.99]']\"", ("a=1", "betas=[0.9, 0.99]")),
        ('network_args = ["a=1", ""]', ("a=1",)),
        ('text_encoder_lr = "[1e-5, 2e-5]"', (1e-5, 2e-5)),
        ('text_encoder_lr = "1e-5, 2e-5"', (1e-5, 2e-5)),
        ("text_encoder_lr = 1e-5", (1e-5,)),
        ("text_encoder_lr = [1, 2.5]", (1.0, 2.5)),
        ('resolution = "512,512"', "512,512"),
        ("resolution = 512", "512"),
        ("lr_warmup_steps = 100.0", 100),
        ("lr_warmup_steps = 0.05", 0.05),
        ('lr_warmup_steps = "10%"', 0.1),
        ("max_token_length = 225", 225),
        ('max_token_length = "150"', 150),
        ("zero_stage = 2.0", 2),
        ('dataset_config = "a.toml"', Path("a.toml")),
        ('caption_separator = ""', ""),
    ],
)
def test_a_value_becomes_what_its_option_wants(tmp_path: Path, line: str, value: object) -> None:
    read = _read(tmp_path, line)
    name = line.split(" ")[0]
    assert read == FileOptions({name: value})
    assert type(read.values[name]) is type(value)


@pytest.mark.parametrize("name", ZERO_MEANS_UNSET)
@pytest.mark.parametrize("zero", ["0", "0.0", '"0"'])
def test_zero_counts_as_not_given_where_it_has_no_meaning(tmp_path: Path, name: str, zero: str) -> None:
    assert _read(tmp_path, f"{name} = {zero}") == FileOptions({})


def test_the_table_of_meaningless_zeros_stands_in_the_documentation() -> None:
    page = (Path(__file__).parents[3] / "docs" / "compatibility.md").read_text("utf-8")
    assert [name for name in ZERO_MEANS_UNSET if f"`{name}`" not in page] == []


def test_empty_text_counts_as_not_given_for_what_is_no_text(tmp_path: Path) -> None:
    assert _read(tmp_path, 'seed = ""\nlog_with = ""\nunet_lr = ""\ncache_latents = ""') == FileOptions({})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed = 1.5", "run.toml: seed: '1.5' is not a whole number"),
        ("seed = true", "seed: true is not a whole number"),
        ('seed = "many"', "seed: 'many' is not a whole number"),
        ("seed = [1]", r"seed: \[1\] is not a whole number"),
        ("cache_latents = 2", "cache_latents: 2 is not true or false"),
        ('cache_latents = "yes"', "cache_latents: 'yes' is not true or false"),
        ('loss_type = "l3"', "loss_type: 'l3' is not one of l1, l2"),
        ("max_token_length = 100", "max_token_length: 100 is not one of 150, 225"),
        ("text_encoder_lr = [1, true]", "text_encoder_lr: true is not a number"),
        ("max_grad_norm = nan", "max_grad_norm: 'nan' is not a number"),
        ("lr_warmup_steps = 1.5", "lr_warmup_steps: '1.5' is not a number of steps"),
        ("output_name = 2024-01-01", "output_name: .* is not text"),
        ("[a.seed]\nx = 1", "seed: .* is not a whole number"),
        ('network_args = "[a=1"\nseed = "x"', "seed: 'x' is not"),
        ('text_encoder_lr = "[1e-5, ]]"', "text_encoder_lr: .* is no list that Python or TOML would write"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_file_and_key(tmp_path: Path, line: str, message: str) -> None:
    (problem,) = _read(tmp_path, line).unread.values()
    assert re.search(message, problem)
    assert "\n" not in problem


def test_a_wrong_secret_is_not_repeated(tmp_path: Path) -> None:
    (problem,) = _read(tmp_path, 'wandb_api_key = ["s3cret"]').unread.values()
    assert problem.endswith("wandb_api_key: it cannot be read")


def test_sections_are_dissolved_and_a_later_key_wins() -> None:
    table = {"seed": 1, "model": {"seed": 2, "v2": True}, "more": {"seed": 3, "deep": {"x": 1}}}
    assert flatten(table) == {"seed": 3, "v2": True, "deep": {"x": 1}}


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert _read(tmp_path, "\ufeffseed = 1") == FileOptions({"seed": 1})


def test_keys_that_are_no_option_are_handed_back_in_order(tmp_path: Path) -> None:
    text = 'noise_offset_type = "x"\nseed = 1\n[a]\nepoch = 3'
    assert _read(tmp_path, text) == FileOptions({"seed": 1}, ("noise_offset_type", "epoch"))


def test_the_suffix_may_be_left_out() -> None:
    assert toml_path("a/run") == toml_path("a/run.toml") == Path("a/run.toml")
    assert toml_path("run.v1") == Path("run.v1.toml")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.toml: there is no such file"):
        read_options(tmp_path / "gone.toml", OPTIONS)
    (tmp_path / "latin.toml").write_bytes(b'output_name = "caf\xe9"')
    with pytest.raises(UserError, match=r"latin\.toml: not UTF-8"):
        read_options(tmp_path / "latin.toml", OPTIONS)
    (tmp_path / "torn.toml").write_text("seed = ", encoding="utf-8")
    with pytest.raises(UserError, match=r"torn\.toml is not TOML"):
        read_options(tmp_path / "torn.toml", OPTIONS)
    (tmp_path / "path.toml").write_text('seed = 1\noutput_dir = "C:\\images"', encoding="utf-8")
    with pytest.raises(UserError, match=r"backslash begins an escape, so write paths in single ones"):
        read_options(tmp_path / "path.toml", OPTIONS)
    (tmp_path / "new.toml").write_text('output_dir = "C:\\new"', encoding="utf-8")  # TOML, but no such path
    with pytest.raises(
        UserError, match=r'holds output_dir = "C:.new"; in double quotes a backslash begins an'
    ):
        read_options(tmp_path / "new.toml", OPTIONS)
    (tmp_path / "data.toml").write_text("[general]\n[[datasets]]", encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.toml describes data sets; give it as --dataset_config"):
        read_options(tmp_path / "data.toml", OPTIONS)
    with pytest.raises(UserError, match=r"--config_file"):
        read_options(tmp_path, OPTIONS)
