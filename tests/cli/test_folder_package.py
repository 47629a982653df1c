"""The drop-in folder installs in the ways in which front-ends install sd-scripts."""

from pathlib import Path

from packaging.requirements import Requirement

from sfumato.cli.folder_package import files
from sfumato.config.toml_text import parse

ROOT = Path(__file__).parents[2]


def _project(text: str) -> dict:
    return parse(text)["project"]


def test_the_folder_needs_what_the_package_needs_but_for_pytorch_and_what_front_ends_offer() -> None:
    project = _project((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["adam8bit"], *extras["optimizers"]]
    lines = [line for line in files()["requirements.txt"].splitlines() if not line.startswith("#")]
    assert lines[-1] == "-e ."
    found = {Requirement(line) for line in lines[:-1]}
    assert found == {Requirement(text) for text in wanted} - {Requirement("torch>=2.4")}
    assert not any(part.operator == "==" for requirement in found for part in requirement.specifier)


def test_the_folder_is_the_distribution_that_front_ends_name_and_contradicts_no_version_of_theirs() -> None:
    project = _project(files()["pyproject.toml"])
    ours = _project((ROOT / "pyproject.toml").read_text("utf-8"))
    assert (project["name"], project["requires-python"]) == ("library", ours["requires-python"])
    assert "dependencies" not in project
    assert "library/__init__.py" in files()
