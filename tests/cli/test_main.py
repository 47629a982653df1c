"""The `sfumato` command and the drop-ins: exit codes, one-line errors, and no torch before work begins."""

import importlib
import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from sfumato.cli import requirements
from sfumato.cli.commands import WORK, Call
from sfumato.cli.dropins import files
from sfumato.cli.main import _COMMANDS, main, script
from sfumato.cli.scripts import SCRIPTS
from sfumato.config.run.run import Run
from sfumato.errors import UserError

ROOT = Path(__file__).parents[2]


def test_every_command_of_a_script_can_be_typed_and_is_named_by_the_help(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    usage = capfd.readouterr().out
    typed = {script.command for script in SCRIPTS if " " not in script.command}
    assert typed - _COMMANDS.keys() == set()
    assert [command for command in typed if command not in usage] == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "there is no command 'trian' (did you mean train?)"),
        (["train"], "write sfumato train FAMILY METHOD"),
        (["train", "flux", "lorra"], "(did you mean flux lora?)"),
        (["train", "flux", "lora", "--lerning_rate", "1"], "(did you mean --learning_rate?)"),
        (["train", "flux", "lora", "--full_fp16"], "--full_fp16 needs --mixed_precision fp16"),
        (
            ["train", "flux", "lora", "--console_log_file", "/no-such-folder/log"],
            "--console_log_file /no-such-folder/log cannot be written: No such file or directory",
        ),
        (["generate"], "--ckpt_path must be given"),
        (["tell", "outputs/a", "pause"], "(choose from"),
        (["tell", "no-such-folder/a", "stop"], "a is no run: there is no a.run.json"),
        (["rerun"], "write sfumato rerun RECORD"),
        (["rerun", "a", "--config_file=b.toml"], "--config_file cannot be used with rerun"),
        (["options"], "SCRIPT"),
        (["options", "flux_train_netwrk"], "(did you mean flux_train_network?)"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert shown.out == ""


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    named = ("train", "generate", "tell", "rerun", "demo", "options", "sd-scripts", "--version")
    assert all(name in text for name in named)
    assert main([]) == 2
    capsys.readouterr()
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sfumato")


def test_options_are_listed_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "flux_train_network.py", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    by_name = {row["dest"]: row for row in rows}
    assert by_name["network_alpha"]["default"] == 1
    assert by_name["optimizer_args"]["nargs"] == "*"
    assert {row["supported"] for row in rows} <= {True, False}
    assert main(["options", "flux_train_network"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_the_drop_in_folder_is_what_the_table_generates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sd-scripts", str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new") in capsys.readouterr().out
    assert {f"{row.name}.py" for row in SCRIPTS if row.is_drop_in} < files().keys()
    for folder in (ROOT / "sd-scripts", tmp_path / "new"):
        found = {
            path.relative_to(folder).as_posix(): path.read_text("utf-8")
            for path in folder.rglob("*")
            if path.suffix == ".py" or path.name in ("requirements.txt", "pyproject.toml")
        }
        assert found == files()


def test_other_programs_can_import_a_network_module_from_the_drop_in_folder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(ROOT / "sd-scripts")
    module = importlib.import_module("networks.lora_flux")
    assert callable(module.create_network)
    assert callable(module.create_network_from_weights)
    assert (
        importlib.import_module("networks.lora").get_block_index("lora_unet_mid_block_resnets_0_conv1") == 12
    )
    assert callable(importlib.import_module("networks.oft").create_network)


def test_a_drop_in_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert main(["sd-scripts", str(tmp_path / "file")]) == 2


def test_a_script_starts_with_what_was_asked_for_and_what_follows_from_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[Run] = []
    monkeypatch.setitem(WORK, "train", lambda run: len(runs.append(run) or []))
    argv = ["--cache_latents_to_disk", "--use_8bit_adam", "--min_snr_gamma", "5", "--output_name", "mine"]
    assert script("flux_train_network", argv) == 0
    values = runs[0].values()
    assert (values["cache_latents"], values["optimizer_type"]) == (True, "AdamW8bit")
    log = capsys.readouterr().err
    assert "--min_snr_gamma has no effect here" in log
    assert "--use_8bit_adam sets optimizer_type to AdamW8bit" in log
    assert 'output_name = "mine"' in log
    assert "max_grad_norm" not in log


def test_secrets_never_reach_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(WORK, "train", lambda run: 0)
    assert script("flux_train_network", ["--wandb_api_key", "s3cret", "--huggingface_token", "s3cret"]) == 0
    shown = capsys.readouterr()
    assert "WANDB_API_KEY" in shown.err
    assert "HF_TOKEN" in shown.err
    assert "s3cret" not in shown.err + shown.out


def test_ctrl_c_ends_with_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(run: Run) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(WORK, "train", interrupt)
    assert script("flux_train_network", []) == 130


def test_output_config_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORK, "train", lambda run: pytest.fail("it must not train"))
    argv = ["--seed", "3", "--config_file", str(tmp_path / "a"), "--output_config"]
    assert script("flux_train_network", argv) == 0
    assert (tmp_path / "a.toml").read_text("utf-8") == "seed = 3\n"
    assert script("flux_train_network", argv) == 1


def test_missing_and_old_libraries_are_one_line_with_the_command_that_mends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = dict(requirements.MINIMUM) | {"torch": "2.13.0+cpu", "transformers": "4.57.1"}
    del found["ftfy"]

    def version(name: str) -> str:
        if name not in found:
            raise PackageNotFoundError(name)
        return found[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(UserError, match=r"not installed: ftfy; transformers 4\.57\.1 is too old") as caught:
        requirements.check_requirements()
    assert '"ftfy>=6.1" "transformers>=5.0"' in str(caught.value)
    assert "torch" not in str(caught.value)
    found |= {"ftfy": "6.3", "transformers": "5.0.0"}
    requirements.check_requirements()


def test_required_versions_are_those_of_the_package_itself() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    declared = text.split("dependencies = [", 1)[1].split("]", 1)[0]
    assert [f'"{name}>={version}"' for name, version in requirements.MINIMUM.items()] == [
        line.strip().rstrip(",")
        for line in declared.splitlines()
        if ">=" in line and "python_version" not in line
    ]


def test_a_drop_in_runs_from_anywhere_and_reports_a_typo(tmp_path: Path) -> None:
    drop_in_file = ROOT / "sd-scripts" / "flux_train_network.py"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(drop_in_file), "--lerning_rate", "1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: unknown option --lerning_rate (did you mean --learning_rate?)\n"


@pytest.mark.parametrize("command", [name for name, work in WORK.items() if isinstance(work, Call)])
def test_what_a_command_calls_is_there(command: str) -> None:
    work = WORK[command]
    assert isinstance(work, Call)
    assert callable(work.imported())


def test_every_row_of_the_table_has_work_to_do() -> None:
    assert {row.command for row in SCRIPTS} <= WORK.keys()
