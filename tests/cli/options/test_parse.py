"""Flags win over the file, the file over defaults, and nothing asked for is passed over in silence."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sfumato.cli.options.parse import Parsed, parse, write_config
from sfumato.cli.scripts import script_named
from sfumato.config.public import public_values
from sfumato.config.rules.tables import OF_SECTIONS
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.errors import UserError
from sfumato.models.families.flux.options import FluxGenerationOptions

SCRIPT = script_named("flux_train_network")

FRONT_END_FILE = """
# what a graphical front-end sends
noise_offset_type = "Original"
epoch = 4
block_lr = ""
bucket_no_upscale = true
bucket_reso_steps = 64.0
cache_latents = 1
caption_extension = ".txt"
clip_skip = "0"
dynamo_backend = "inductor"
huber_c = 0
huggingface_path_in_repo = ""
log_with = 0
lr_scheduler_args = []
lr_warmup_steps = 0.1
max_bucket_reso = 2048
max_data_loader_n_workers = 0
max_grad_norm = 0
min_bucket_reso = 0
network_args = []
network_module = "networks.lora_flux"
noise_offset = 0
optimizer_type = "AdamW8bit"
resolution = "512,512"
sample_every_n_steps = 0
sample_prompts = "/tmp/sample/prompt.txt"
sample_sampler = "euler_a"
save_every_n_epochs = "1"
scale_weight_norms = 0
text_encoder_lr = [5e-5, 0]
vae_batch_size = 0
wandb_run_name = "last"
"""


def _parse(*argv: str, as_command: bool = False) -> Parsed:
    return parse(SCRIPT, argv, prog="prog", as_command=as_command)


def _file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_command_line_wins_even_where_it_repeats_the_default(tmp_path: Path) -> None:
    config = _file(tmp_path, "learning_rate = 1e-3\nmax_grad_norm = 5\nnetwork_dim = 8")
    run = _parse("--config_file", config, "--learning_rate", "2e-6").run
    assert run[OptimizerConfig] == OptimizerConfig(learning_rate=2e-6, max_grad_norm=5)
    assert run[NetworkConfig].network_dim == 8


def test_a_run_names_script_family_and_what_is_trained() -> None:
    run = _parse().run
    assert (run.script, run.family, run.method) == ("flux_train_network", "flux", "adapter")
    assert public_values(run) == {}


def test_what_a_front_end_sends_runs_with_two_lines_about_what_is_passed_over(tmp_path: Path) -> None:
    parsed = _parse("--config_file", _file(tmp_path, FRONT_END_FILE))
    stray, *idle = parsed.warnings
    assert "noise_offset_type (did you mean noise_offset?), epoch, block_lr" in stray
    assert sorted(re.findall(r"--(\w+) has no effect without", " ".join(idle))) == [
        "sample_prompts", "sample_sampler", "wandb_run_name",
    ]  # fmt: skip
    values = parsed.run.values()
    assert (values["min_bucket_reso"], values["huber_c"], values["vae_batch_size"]) == (256, 0.1, 1)
    assert (values["max_grad_norm"], values["max_data_loader_n_workers"]) == (0, 0)
    assert (values["log_with"], values["clip_skip"], values["save_every_n_epochs"]) == (None, None, 1)


def test_stray_keys_stop_a_strict_run(tmp_path: Path) -> None:
    config = _file(tmp_path, "lerning_rate = 1")
    assert len(_parse("--config_file", config).warnings) == 1
    with pytest.raises(
        UserError, match=r"run\.toml: no such option.* lerning_rate \(did you mean learning_rate\?\)"
    ):
        _parse("--config_file", config, "--strict")
    with pytest.raises(UserError, match="lerning_rate"):
        _parse("--config_file", config, as_command=True)


@pytest.mark.parametrize(
    "argv",
    [
        ["--min_snr_gamma", "5"],
        ["--v2"],
        ["--xformers"],
        ["--vae", "x"],
        ["--sample_prompts", "x"],
        ["--noise_offset", "0.1"],
    ],
)
def test_an_option_without_effect_is_one_line_in_a_drop_in_and_stops_a_strict_run(argv: list[str]) -> None:
    (warning,) = _parse(*argv).warnings
    assert warning.startswith(f"{argv[0]} has no effect")
    with pytest.raises(UserError, match=f"{argv[0]} has no effect"):
        _parse(*argv, as_command=True)


@pytest.mark.parametrize(
    "argv", [["--min_snr_gamma", "0"], ["--multires_noise_discount", "0.3"], ["--noise_offset", "0"]]
)
def test_an_option_that_asks_for_nothing_is_no_complaint(argv: list[str]) -> None:
    assert _parse(*argv, "--strict").warnings == ()


def test_what_is_not_built_stops_a_run_only_when_it_is_asked_for() -> None:
    script = replace(SCRIPT, unsupported=frozenset({"blocks_to_swap", "sample_sampler", "model_type"}))

    def read(*argv: str) -> Parsed:
        return parse(script, argv, prog="prog")

    with pytest.raises(UserError, match=r"^--blocks_to_swap is not supported yet; leave it out$"):
        read("--blocks_to_swap", "4")
    assert read("--blocks_to_swap", "0", "--model_type", "flux").warnings == ()
    assert len(read("--sample_sampler", "heun").warnings) == 1
    with pytest.raises(UserError, match=r"^--sample_sampler is not supported yet; leave it out$"):
        read("--sample_sampler", "heun", "--sample_every_n_steps", "5")


def test_what_cannot_be_supported_says_why() -> None:
    script = script_named("tools/cache_latents")
    with pytest.raises(
        UserError, match=r"^--dataset_class cannot work here: what a class of one's own makes"
    ):
        parse(script, ["--dataset_class", "my.Data", "--flux"], prog="prog")


def test_a_single_value_can_be_missing_from_an_option_that_is_built() -> None:
    script = replace(SCRIPT, unsupported_values={"log_with": ("wandb", "all")})
    with pytest.raises(UserError, match=r"^--log_with wandb is not supported yet; leave it out$"):
        parse(script, ["--log_with", "wandb"], prog="prog")
    parse(script, ["--log_with", "tensorboard", "--logging_dir", "x"], prog="prog")


def test_every_option_that_the_tables_name_exists() -> None:
    from sfumato.cli.scripts import SCRIPTS

    known = set().union(*(script.options() for script in SCRIPTS)) | {"control_dir"}
    for script in SCRIPTS:
        named = {*script.unsupported, *script.unsupported_values, *script.without_effect, *script.overrides}
        named |= {*script.impossible}
        assert named <= set(script.options())
        assert not script.unsupported & {*script.without_effect, *script.impossible}
    for rule in (rule for rules in OF_SECTIONS.values() for rule in rules):
        companies = [given.option for company in (*rule.among, *rule.without) for given in company]
        assert {*rule.options, *companies} <= known


def test_a_secret_on_the_command_line_is_warned_about_but_not_one_in_a_file(tmp_path: Path) -> None:
    script = replace(SCRIPT, unsupported=frozenset())
    argv = ["--huggingface_repo_id", "me/it"]
    (warning,) = parse(script, [*argv, "--huggingface_token", "s3cret"], prog="prog").warnings
    assert "HF_TOKEN" in warning
    assert "s3cret" not in warning
    config = _file(tmp_path, 'huggingface_token = "s3cret"')
    assert parse(script, [*argv, "--config_file", config], prog="prog").warnings == ()


def test_a_required_option_is_asked_for() -> None:
    generate = script_named("flux_minimal_inference")
    with pytest.raises(UserError, match="--ckpt_path must be given"):
        parse(generate, [], prog="prog")
    run = parse(generate, ["--ckpt_path", "x", "--lora", "a;0.5", "b"], prog="prog").run
    assert run[FluxGenerationOptions].ckpt_path == "x"
    assert run.values()["lora_weights"] == ("a;0.5", "b")


def test_the_sub_command_has_defaults_of_its_own() -> None:
    assert _parse(as_command=True).run[NetworkConfig].network_module == "networks.lora_flux"
    assert _parse().run[NetworkConfig].network_module is None


def test_an_output_config_reads_back_as_the_same_run_without_secrets(tmp_path: Path) -> None:
    target = str(tmp_path / "saved")
    argv = ["--network_args", "a=1", "b=[1, 2]", "--learning_rate", "1e-4", "--dataset_config", "d.toml",
            "--cache_latents", "--lr_warmup_steps", "10%", "--wandb_api_key", "s3cret"]  # fmt: skip
    parsed = _parse(*argv, "--config_file", target, "--output_config")
    assert parsed.output_config == tmp_path / "saved.toml"
    assert write_config(parsed.output_config, parsed.run) == 0
    text = (tmp_path / "saved.toml").read_text("utf-8")
    assert "s3cret" not in text
    assert "config_file" not in text
    again = _parse("--config_file", target).run
    assert public_values(again) == public_values(parsed.run)
    assert len(public_values(again)) == 5


def test_an_output_config_never_replaces_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = _file(tmp_path, "seed = 1")
    parsed = _parse("--config_file", target, "--output_config")
    assert parsed.output_config is not None
    assert write_config(parsed.output_config, parsed.run) == 1
    assert "run.toml exists" in capsys.readouterr().err
    assert Path(target).read_text("utf-8") == "seed = 1"
    with pytest.raises(UserError, match="--output_config needs --config_file"):
        _parse("--output_config")
