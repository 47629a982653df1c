"""What quickstart.py decides, and that it costs nothing once the environment is made."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from sfumato import installing
from sfumato.config.run.training.optimizer_names import NAMED

ROOT = Path(__file__).parents[1]
PIN = "torch==9.9.9"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "quickstart.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["quickstart"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


quickstart = load()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the repository's entry whose environment seems to be made already."""
    for name in ("quickstart.py", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    program = tmp_path / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    program.parent.mkdir(parents=True)
    program.symlink_to(sys.executable)
    stamp = {
        "files": quickstart.fingerprint(tmp_path),
        "torch": "auto",
        "pin": quickstart.pinned(tmp_path, "torch"),
        "extras": [],
    }
    quickstart.write_stamp(tmp_path / ".venv", stamp)
    return tmp_path


def call(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(project / "quickstart.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=project)


def titles(chosen: str, platform: str, cuda: float | None) -> list[str]:
    return [
        source.index or " ".join(source.arguments)
        for source in quickstart.torch_sources(chosen, PIN, platform, cuda)
    ]


def test_second_call_starts_within_a_second_and_passes_the_exit_code_on(project: Path) -> None:
    (project / "answer.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    start = time.monotonic()
    result = call(project, "answer.py", "--torch", "x", "-h")
    assert time.monotonic() - start < 1
    assert (result.returncode, result.stdout.strip()) == (7, "['--torch', 'x', '-h']")
    assert result.stderr == ""


def test_changed_requirements_and_other_builds_are_noticed(project: Path) -> None:
    before = quickstart.fingerprint(project)
    with (project / "constraints.txt").open("a") as file:
        file.write("numpy==1.0\n")
    assert quickstart.fingerprint(project) != before


@pytest.mark.parametrize(
    ("torch", "extra", "installs_torch"), [(None, "dev", False), ("cpu", "", True), ("cpu", "dev", True)]
)
def test_only_what_is_missing_is_installed(
    project: Path, monkeypatch: pytest.MonkeyPatch, torch: str | None, extra: str, installs_torch: bool
) -> None:
    calls = []
    monkeypatch.setattr(quickstart, "pip", lambda _, *arguments, **__: calls.append(arguments) or True)
    monkeypatch.setattr(quickstart, "is_reachable", lambda _: True)
    quickstart.prepare(project, torch, {extra: "a test"} if extra else {})
    assert [any("torch==" in argument for argument in call) for call in calls] == [True, False][
        1 - installs_torch :
    ]
    assert calls[-1][-1] == str(project) + ("[dev]" if extra else "")
    constrained = [
        line.split("==")[0] for line in Path(calls[-1][2]).read_text(encoding="utf-8").splitlines()
    ]
    assert "torch" not in constrained
    assert "numpy" in constrained
    calls.clear()
    quickstart.prepare(project, None, {})
    assert calls == []


def test_failed_installation_is_one_line_and_is_tried_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "pip", lambda *_, **__: False)
    with pytest.raises(quickstart.SetupError, match="pip failed"):
        quickstart.prepare(project, None, {"dev": "a test"})
    assert quickstart.read_stamp(project / ".venv")["extras"] == [], "what there was before still works"
    with pytest.raises(quickstart.SetupError, match="--torch cpu"):
        quickstart.prepare(project, "torch==0.0.1", {})
    assert quickstart.read_stamp(project / ".venv") == {}


def test_broken_stamp_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "sfumato-quickstart.json").write_text("{")
    assert quickstart.read_stamp(tmp_path) == {}
    quickstart.write_stamp(tmp_path, {"a": 1})
    assert json.loads((tmp_path / "sfumato-quickstart.json").read_text()) == {"a": 1}


def test_machine_without_card_gets_the_cpu_build() -> None:
    cpu = "https://download.pytorch.org/whl/cpu"
    assert titles("auto", "linux", None) == [f"--no-index --no-deps {PIN}", cpu, PIN]
    assert titles("auto", "win32", None) == [PIN]
    assert titles("auto", "darwin", None) == [PIN]


def test_machine_with_card_gets_a_cuda_build_that_its_driver_runs() -> None:
    index = "https://download.pytorch.org/whl/"
    assert titles("auto", "linux", 13.1)[0] == PIN
    assert titles("auto", "linux", 12.8) == [f"{index}cu128", f"{index}cu126", PIN]
    assert titles("auto", "win32", 13.0) == [f"{index}cu130", f"{index}cu128", f"{index}cu126"]
    assert titles("auto", "win32", 12.4) == [f"{index}cu126"]


def test_build_can_be_named() -> None:
    index = "https://download.pytorch.org/whl/"
    assert titles("cu128", "win32", None) == [f"{index}cu128"]
    assert titles("rocm6.4", "linux", None) == [f"{index}rocm6.4"]
    assert titles("cpu", "linux", 13.0) == [f"{index}cpu"]
    assert titles("torch==2.6.0", "linux", None) == ["torch==2.6.0"]


def test_driver_tells_its_cuda_version() -> None:
    report = "| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: 12.8     |"
    assert quickstart.cuda_version(lambda: report) == 12.8
    assert quickstart.cuda_version(lambda: "No devices were found") is None


def test_closed_network_answers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    start = time.monotonic()
    assert not quickstart.is_reachable("http://127.0.0.1:9/whl")
    assert time.monotonic() - start < 2


def test_commands_become_calls_of_the_environments_python() -> None:
    python = Path("/venv/bin/python")
    assert quickstart.command_line(python, ["demo", "out"])[1:] == ["-m", "sfumato", "demo", "out"]
    assert quickstart.command_line(python, ["test", "-k", "x"])[1:3] == ["-m", "pytest"]
    assert quickstart.command_line(python, ["sd-scripts/flux_train_network.py", "--help"])[1:] == [
        "sd-scripts/flux_train_network.py",
        "--help",
    ]


def test_help_and_unknown_options_need_no_environment(tmp_path: Path) -> None:
    (tmp_path / "quickstart.py").write_bytes((ROOT / "quickstart.py").read_bytes())
    assert "usage: python quickstart.py" in call(tmp_path).stdout
    assert call(tmp_path, "--help").returncode == 0
    assert call(tmp_path, "--trch", "cpu", "demo").returncode == 2
    assert not (tmp_path / ".venv").exists()


def needs(tmp_path: Path, *words: str) -> dict[str, str]:
    return quickstart.needs_of(["train", "flux", "lora", *words], tmp_path)


@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["--optimizer_type", "adamw8bit"], "adam8bit"),
        (["--optimizer_type=PagedAdamW8bit"], "adam8bit"),
        (["--optimizer_t", "AdamW8BIT", "--seed", "1"], "adam8bit"),
        (["--optim", "bitsandbytes.optim.AdEMAMix8bit"], "adam8bit"),
        (["--use_8bit_adam"], "adam8bit"),
        (["--use_lion_optimizer"], "optimizers"),
        (["--optimizer_type", "Prodigy"], "optimizers"),
        (["--optimizer_type", "schedulefree.AdamWScheduleFree"], "optimizers"),
        (["--log_with", "wandb"], "wandb"),
        (["--log_with=all"], "wandb"),
        (["--network_module", "lycoris.kohya"], "lycoris"),
        (["--optimizer_type", "adamw8bit", "--optimizer_type", "adamw"], ""),
        (["--optimizer_type", "adafactor", "--log_with", "tensorboard"], ""),
        (["--optimizer_args", "x=adamw8bit", "--network_module", "networks.lora_flux"], ""),
        (["--optimizer_type"], ""),
    ],
)
def test_what_options_need_is_found_on_the_command_line(words: list[str], extra: str, tmp_path: Path) -> None:
    assert list(needs(tmp_path, *words)) == ([extra] if extra else [])


def test_every_optimizer_with_a_name_gets_its_package(tmp_path: Path) -> None:
    packages = quickstart.packages_of(ROOT)
    for name, path in NAMED.items():
        root = path.partition(".")[0]
        found = [
            package for extra in needs(tmp_path, "--optimizer_type", name) for package in packages[extra]
        ]
        assert (installing.package_of(root) in found) == (root not in ("torch", "transformers")), name


def test_what_a_configuration_file_needs_is_found_and_the_command_line_wins(tmp_path: Path) -> None:
    text = """# optimizer_type = "Lion"
[training]
  optimizer_type = 'AdamW8bit' # fast
log_with="wandb"
use_lion_optimizer = false
"""
    (tmp_path / "run.toml").write_text(text)
    run = str(tmp_path / "run")
    both = {"adam8bit": "--optimizer_type AdamW8bit", "wandb": "--log_with wandb"}
    assert needs(tmp_path, "--config_file", run) == both
    assert needs(tmp_path, f"--config_f={run}.toml", "--optimizer_type", "adamw") == {
        "wandb": "--log_with wandb"
    }
    (tmp_path / "run.toml").write_text("use_8bit_adam = true")
    assert list(needs(tmp_path, "--config_file", run)) == ["adam8bit"]
    assert needs(tmp_path, "--config_file", str(tmp_path / "nowhere")) == {}


def test_an_environment_for_commands_to_come_has_what_optimizers_need() -> None:
    assert list(quickstart.needs_of(["install"], ROOT)) == quickstart.usual_extras()
    assert quickstart.usual_extras("linux") == ["adam8bit", "optimizers"]
    assert list(quickstart.needs_of(["install", "wandb"], ROOT)) == ["wandb"]
    with pytest.raises(quickstart.SetupError, match=r"no extra 'wandbb'; pyproject.toml has adam8bit, optim"):
        quickstart.lacking_extras(ROOT, [], quickstart.needs_of(["install", "wandbb"], ROOT))


def test_the_packages_of_extras_are_those_that_pip_finds() -> None:
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: [re.split("[>=]", one)[0] for one in listed] for extra, listed in declared.items()}
    assert quickstart.packages_of(ROOT) == names


def test_what_a_command_needs_is_said_in_one_line_and_installed_once(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    monkeypatch.setattr(quickstart, "pip", lambda _, *arguments, **__: calls.append(arguments) or True)
    command = ["train", "flux", "lora", "--optimizer_type", "adamw8bit"]
    for _ in range(2):
        quickstart.prepare(project, None, quickstart.needs_of(command, project))
    (only,) = calls
    assert only[-1] == f"{project}[adam8bit]"
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "quickstart: installing bitsandbytes for --optimizer_type adamw8bit"
    assert said[1].startswith("quickstart: ready after ")
    assert len(said) == 2


def test_packages_that_another_extra_has_brought_are_not_installed_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stamp = quickstart.read_stamp(project / ".venv")
    quickstart.write_stamp(project / ".venv", {**stamp, "extras": ["dev"]})
    monkeypatch.setattr(quickstart, "pip", lambda *_, **__: pytest.fail("nothing is missing"))
    quickstart.prepare(project, None, {"adam8bit": "", "optimizers": "", "wandb": ""})


@pytest.mark.skipif(os.name == "nt", reason="only where the system can run a command in place of a process")
def test_tests_may_keep_bytecode(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str | None] = []

    def execv(*_: object) -> None:
        started.append(os.environ.get("PYTHONDONTWRITEBYTECODE"))
        raise SystemExit

    monkeypatch.chdir(quickstart.ROOT)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(os, "execv", execv)
    for command in (["demo"], ["test"]):
        with pytest.raises(SystemExit):
            quickstart.run(quickstart.command_line(Path("python"), command))
    assert started == ["1", None]


@pytest.mark.parametrize(("command", "needed"), [("demo", {}), ("test", {"dev": "the tests"}), ("train", {})])
def test_a_command_without_words_behind_it_needs_what_it_needs(command: str, needed: dict[str, str]) -> None:
    assert quickstart.needs_of([command], ROOT) == needed
    assert f"python quickstart.py {command}" in (ROOT / "README.md").read_text("utf-8") or command == "train"
