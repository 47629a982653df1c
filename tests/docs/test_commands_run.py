"""Every command of the documentation is run as written, on a tiny model under the published names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from sfumato.cli.main import main, script
from tests import tiny

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = "cache-latents|cache-text|resize-images|merge-captions|clean-captions|prepare-buckets|convert|inspect"
LORA_TOOLS = "(extract|resize|convert|check|interrogate)-lora|extract-dylora|merge|merge-svd"
STARTS = (
    r"accelerate launch .*?sd-scripts/\w+\.py",
    r"python sd-scripts/[\w/]+\.py",
    rf"sfumato (train|account|generate|{TOOLS}|{LORA_TOOLS})",
)
START = re.compile(rf"({'|'.join(STARTS)})\s")
SMALLER = {
    "train": ["--max_data_loader_n_workers", "0", "--resolution", "64"],
    "account": ["--max_data_loader_n_workers", "0", "--resolution", "64"],
    "prepare-buckets": ["--max_resolution", "64,64", "--min_bucket_reso", "64"],
    "generate": shlex.split("--width 32 --height 32 --steps 1"),
}


def commands(page: Path) -> list[str]:
    """Return the indented commands of a page that do something with models, each on one line, in order."""
    lines = page.read_text("utf-8").replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.startswith("    ") and START.match(line.strip())]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that holds what the documentation takes for granted, small."""
    model = tiny.flux(tmp_path)
    model.t5xxl.rename(tmp_path / "t5xxl_fp16.safetensors")
    tiny.sd(tmp_path).path.rename(tmp_path / "sd15.safetensors")
    tiny.sdxl(tmp_path)
    tuned = {
        "flux1-dev": tiny.flux(tmp_path / "tuned", seed=9).transformer,
        "sd15": tiny.sd(tmp_path / "tuned", seed=9).path,
    }
    for name, path in tuned.items():
        path.rename(tmp_path / f"{name}-tuned.safetensors")
    tiny.pictures(tmp_path / "pictures" / "my-cat", 2)
    tiny.pictures(tmp_path / "pictures" / "other-cats", 2, seed=1)
    named = [path.stem for path in sorted((tmp_path / "pictures" / "my-cat").glob("*.png"))]
    (tmp_path / "pictures" / "captions.json").write_text(json.dumps({n: {"caption": n} for n in named}))
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for example in (tmp_path / "examples").glob("*.toml"):
        smaller = re.sub(
            "resolution = .*", "resolution = 64\nmin_bucket_reso = 64", example.read_text("utf-8")
        )
        example.write_text(smaller.replace("num_repeats = 10", "num_repeats = 1"), encoding="utf-8")
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 64 --s 1 --d 1\n", encoding="utf-8")
    (tmp_path / "outputs").mkdir()
    (squares,) = re.findall(
        r"```python\n(# squares.py.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL
    )
    (tmp_path / "squares.py").write_text(squares)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(command: str) -> int:
    words = shlex.split(command)
    if words[0] == "accelerate":
        number = next(number for number, word in enumerate(words) if word.startswith("sd-scripts/"))
        return script(Path(words[number]).stem, [*words[number + 1 :], *SMALLER["train"]])
    if words[0] == "python":
        return script(words[1].removeprefix("sd-scripts/").removesuffix(".py"), words[2:])
    return main([*words[1:], *SMALLER.get(words[1], [])])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_work_one_after_the_other(page: Path, workplace: Path) -> None:
    for command in commands(page):
        name = re.search(r"--output_name (\S+)", command)
        used = re.search(r"(outputs/[\w-]+\.safetensors)", command)
        if used and not (workplace / used[1]).exists():
            pytest.fail(f"{page.name} uses a LoRA that none of its commands makes: {command}")
        assert start(command) == 0, command
        if name and not command.startswith("sfumato account"):
            assert (workplace / "outputs" / f"{name[1]}.safetensors").exists()


def test_the_pages_hold_commands() -> None:
    counts = {page.name: len(commands(page)) for page in PAGES}
    assert counts["flux_lora.md"] == 5
    assert counts["flux_finetuning.md"] == 1
    assert counts["sd_lora.md"] == 3
    assert counts["sdxl_lora.md"] == 2
    assert counts["getting_started.md"] == 2
    assert counts["datasets.md"] == 3
    assert counts["inspect.md"] == 1
    assert counts["preparing.md"] == 7
    assert counts["extracting.md"] == 7
    assert counts["merging.md"] == 5
    assert counts["converting.md"] == 7
    assert counts["memory.md"] == 2
    assert counts["README.md"] >= 1
