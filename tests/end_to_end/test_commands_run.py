"""Every command of the documentation is run as written, on a tiny model under the published names."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from sfumato.cli.main import main, script
from tests.docs.commands import SMALLER, commands
from tests.docs.workplace import furnish
from tests.hub import stand_in
from tests.hub.stand_in import TOKEN, Hub, Repo
from tests.runs import others_slow

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WALKED = ROOT / "docs" / "getting_started.md"
"""Where tests/walk_getting_started.py goes before the other tests; here it is slow."""

ON_HUB = {
    "black-forest-labs/FLUX.1-dev": ["flux1-dev.safetensors", "ae.safetensors"],
    "comfyanonymous/flux_text_encoders": ["clip_l.safetensors", "t5xxl_fp16.safetensors"],
    "openai/clip-vit-large-patch14": ["tokenizers/openai_clip-vit-large-patch14/tokenizer.json"],
    "google/t5-v1_1-xxl": ["tokenizers/google_t5-v1_1-xxl/tokenizer.json"],
}
"""What the stand-in for the Hub holds, by repository."""

# The Hub's client speaks to its HTTP library in a way that is out of date there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what the documentation takes for granted, small."""
    folder = tmp_path_factory.mktemp("furnished")
    furnish(folder)
    return folder


@pytest.fixture(scope="module")
def served() -> Iterator[Hub]:
    with stand_in.serving() as hub:
        yield hub


def read(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return the content of files, by their names without folders."""
    return {Path(name).name: (folder / name).read_bytes() for name in names}


@pytest.fixture
def workplace(furnished: Path, served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return such a folder for one test."""
    shutil.copytree(furnished, tmp_path, dirs_exist_ok=True)
    served.reset()
    served.repos |= {name: Repo(read(furnished, files)) for name, files in ON_HUB.items()}
    stand_in.use(served, tmp_path / "cache", monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(command: str) -> int:
    """Start a command in this process; none trains for more than three epochs."""
    words = shlex.split(re.sub(r"(--max_train_epochs) (?![1-3]\b)\d+", r"\1 2", command))
    if words[0] == "accelerate":
        number = next(number for number, word in enumerate(words) if word.startswith("sd-scripts/"))
        return script(Path(words[number]).stem, [*words[number + 1 :], *SMALLER["train"]])
    if words[0] == "python":
        return script(words[1].removeprefix("sd-scripts/").removesuffix(".py"), words[2:])
    return main([*words[1:], *SMALLER.get(words[1], [])])


@pytest.mark.parametrize("page", others_slow(PAGES, {*PAGES} - {WALKED}), ids=lambda page: page.name)
def test_the_commands_of_a_page_work_one_after_the_other(page: Path, workplace: Path) -> None:
    for command in commands(page):
        name = re.search(r"--output_name (\S+)", command)
        used = re.search(r"(outputs/[\w-]+\.safetensors)", command)
        if used and not (workplace / used[1]).exists():
            pytest.fail(f"{page.name} uses a LoRA that none of its commands makes: {command}")
        assert start(command) == 0, command
        if name and not command.startswith("sfumato plan"):
            assert (workplace / "outputs" / f"{name[1]}.safetensors").exists()


def test_the_pages_hold_commands() -> None:
    counts = {page.name: len(commands(page)) for page in PAGES}
    assert counts["flux_lora.md"] == 5
    assert counts["flux_finetuning.md"] == 1
    assert counts["dreambooth.md"] == 3
    assert counts["fine_tuning.md"] == 5
    assert counts["sd_lora.md"] == 3
    assert counts["sdxl_lora.md"] == 2
    assert counts["sd3.md"] == 16
    assert counts["inpainting.md"] == 2
    assert counts["getting_started.md"] == 2
    assert counts["datasets.md"] == 3
    assert counts["regularisation.md"] == 2
    assert counts["inspect.md"] == 1
    assert counts["preparing.md"] == 7
    assert counts["extracting.md"] == 7
    assert counts["merging.md"] == 5
    assert counts["converting.md"] == 8
    assert counts["memory.md"] == 2
    assert counts["hub.md"] == 2
    assert counts["README.md"] >= 1
