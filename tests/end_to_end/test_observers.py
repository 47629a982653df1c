"""Runs that are watched, asked for something while they go on, recorded, and started again."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from sfumato.cli.main import main
from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_named
from sfumato.config.rules.evaluation import imply
from sfumato.config.rules.tables import rules_for
from sfumato.config.run.run import Run
from sfumato.training.core.commands import Command
from sfumato.training.core.events import Ended, ImageMade, Saved, Started, Warned
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Step
from sfumato.training.run.setup import train
from tests import tiny
from tests.runs import events, figures, refusal

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 5 --seed 5
--network_module networks.lora_flux --network_dim 2 --network_train_unet_only
--cache_latents --cache_text_encoder_outputs --output_name lora
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"), hidden=32, heads=1, depth=1, depth_single=1)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    tiny.pictures(tmp_path / "data" / "1_sks cat", 4)
    return tmp_path / "data"


def run_for(model: tiny.TinyFlux, images: Path, out: Path, *options: str) -> Run:
    places = ["--train_data_dir", str(images), "--output_dir", str(out)]
    argv = [*model.arguments, *places, *SHORT.split(), *options]
    script = script_named("flux_train_network")
    return imply(parse(script, argv, prog="test").run, rules_for(script))[0]


class Notebook(Observer):
    """Notes everything, and asks for something after some steps."""

    def __init__(self, acts: dict[int, Callable[[Started], object]]) -> None:
        self.acts = acts
        self.told: list[str] = []
        self.warnings: list[str] = []

    def started(self, event: Started) -> None:
        self.start = event
        self.told.append(f"started at {event.step} of {event.num_steps}")

    def after(self, step: Step) -> None:
        self.told.append(f"step {step.number}")
        self.acts.get(step.number, lambda _: None)(self.start)

    def asked(self, command: Command, step: Step) -> None:
        self.told.append(command.value)

    def image(self, event: ImageMade) -> None:
        assert event.path.is_file()
        self.told.append(f"image of {event.prompt} after {event.step}")

    def saved(self, event: Saved) -> None:
        self.told.append(f"saved {event.path.name}, state {event.state is not None}")

    def warned(self, event: Warned) -> None:
        self.warnings.append(event.text)

    def ended(self, event: Ended) -> None:
        self.told.append(f"{event.how} after {event.step}")


def test_a_run_in_a_thread_is_told_by_its_control_file_and_stopped_by_an_observer(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text("a cat --w 64 --h 64 --s 1 --d 1\n")
    previews = ["--sample_prompts", str(prompts), "--sample_every_n_steps", "9"]
    run = run_for(model, images, out, *previews, "--logging_dir", str(tmp_path / "logs"))

    def tell(word: str) -> Callable[[Started], object]:
        return lambda event: main(["tell", str(event.output), word])

    notes = Notebook({1: tell("save"), 2: tell("sample"), 3: lambda event: event.commands.stop()})
    saved: list[Path] = []
    thread = threading.Thread(target=lambda: saved.extend(train(run, [notes], bar=False)))
    thread.start()
    thread.join()
    assert notes.told == [
        *("started at 0 of 5", "step 1", "save", "saved lora-step00000001.safetensors, state False"),
        *("step 2", "sample", "image of a cat after 2"),
        *("step 3", "stop", "saved lora-step00000003.safetensors, state True", "stopped after 3"),
    ]
    assert [path.name for path in saved] == ["lora-step00000001.safetensors", "lora-step00000003.safetensors"]
    lines = out / "lora.metrics.jsonl"
    assert [line["step"] for line in figures(lines)] == [1, 2, 3]
    assert [(line["event"], line["step"]) for line in events(lines) if line["event"] != "warning"] == [
        *(("started", 0), ("saved", 1), ("image", 2), ("saved", 3), ("ended", 3)),
    ]
    assert not (out / "lora.control").exists()
    assert any(b"sample_0" in path.read_bytes() for path in (tmp_path / "logs").rglob("events*"))
    record = json.loads((out / "lora.run.json").read_text())
    assert (record["ended"], record["step"], record["saved"]) == ("stopped", 3, [str(path) for path in saved])
    state = str(out / "lora-step00000003-state")
    again = Notebook({})
    assert train(run_for(model, images, out, "--resume", state), [again]) == [out / "lora.safetensors"]
    assert again.told[0] == "started at 3 of 5"
    assert again.told[-1] == "finished after 5"
    assert [line["step"] for line in figures(lines)] == [1, 2, 3, 4, 5]


def test_what_cannot_be_done_is_a_warning_and_who_is_not_there_is_an_error(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["tell", str(out / "lora"), "stop"]) == 2
    assert "is no run: there is no lora.run.json" in refusal(capfd)
    notes = Notebook({2: lambda event: main(["tell", str(out), "sample"])})
    train(run_for(model, images, out), [notes], bar=False)
    assert [text.partition(":")[0] for text in notes.warnings] == ["there is nothing to sample"]
    capfd.readouterr()
    assert main(["tell", str(out / "lora.safetensors"), "save"]) == 2
    assert "does not run: it finished after step 5" in refusal(capfd)
    path = out / "lora.run.json"
    record = json.loads(path.read_text()) | {"ended": None}
    record["process"]["created_s"] -= 1000  # as if its number were another's by now
    path.write_text(json.dumps(record))
    assert main(["tell", str(path), "save"]) == 2
    assert "ended without a word" in refusal(capfd)


def test_an_observer_that_fails_ends_the_run_as_failed(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    def fail(_: Started) -> None:
        raise ZeroDivisionError

    notes = Notebook({2: fail})
    with pytest.raises(ZeroDivisionError):
        train(run_for(model, images, tmp_path / "out"), [notes], bar=False)
    assert notes.told[-1] == "failed after 2"
    assert events(tmp_path / "out" / "lora.metrics.jsonl")[-1] == {
        "event": "ended",
        "step": 2,
        "how": "failed",
    }


def test_a_recorded_run_is_started_again_and_says_what_has_changed(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "")  # a run puts the option there
    secret = ["--wandb_api_key", "very-secret"]
    (first,) = train(run_for(model, images, tmp_path / "first", *secret), bar=False)
    text = (tmp_path / "first" / "lora.run.json").read_text()
    assert "very-secret" not in text
    hashes = [file["sha256"] for file in json.loads(text)["files"].values()]
    assert len(hashes) == 4
    assert all(len(value) == 64 for value in hashes)
    assert main(["rerun", str(first)]) == 2
    assert "give the new run another --output_name or --output_dir" in refusal(capfd)
    assert main(["rerun", str(first), "--output_dir", str(tmp_path / "second")]) == 0
    assert "since the first run nothing has changed" in capfd.readouterr().err
    assert (tmp_path / "second" / "lora.safetensors").read_bytes()[-999:] == first.read_bytes()[-999:]
    folder = images / "1_sks cat"
    (folder / "picture_00.txt").write_text("a dog")
    (folder / "picture_01.png").rename(folder / "other.png")
    model.ae.touch()
    other = ["--output_name", "third", "--max_train_steps", "1"]
    assert main(["rerun", str(first), *other]) == 0
    said = [line.partition("since the first run: ")[2] for line in capfd.readouterr().err.splitlines()]
    assert [line for line in said if line] == [
        "--max_train_steps was 5 and is 1",
        f"images of {folder}: 1 added (other.png), 1 removed (picture_01.png), "
        "1 captioned differently (picture_00.png)",
    ]
