"""What trackers record, read back from what they wrote."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sfumato.config.run.output.tracking import TrackingConfig
from sfumato.errors import UserError
from sfumato.training.core.events import Ended, ImageMade
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan
from sfumato.training.core.readings import Rate, Reading
from sfumato.training.observers import trackers
from sfumato.training.observers.metrics import MetricsFile


class Sheet:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.is_finished = False

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.is_finished = True


def _scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def _record(recorder: Observer, plan: Plan, losses: list[float], rate: Rate) -> None:
    for step, loss in zip(plan.steps(), losses, strict=True):
        recorder.read(Reading(step, loss, 1.0, [rate, rate], []))
    recorder.ended(Ended(len(losses), "finished"))


def test_losses_and_rates_have_the_names_and_values_of_sd_scripts() -> None:
    sheet, plan = Sheet(), Plan(num_batches=2, group=1, num_steps=5)
    recorder = trackers.Recorder([sheet], ["textencoder 1 ", "unet"], plan.steps_per_epoch)
    _record(recorder, plan, [4.0, 2.0, 1.0, 0.0, 5.0], Rate(1e-3))
    assert [step for step, _ in sheet.rows] == [1, 2, 3, 4, 5]
    assert [row["loss/current"] for _, row in sheet.rows] == [4, 2, 1, 0, 5]
    assert [row["loss/average"] for _, row in sheet.rows] == [4, 3, 1.5, 0.5, 2.5]
    assert [row.get("loss/epoch_average") for _, row in sheet.rows] == [None, 3, None, 0.5, None]
    assert sheet.rows[0][1].keys() == {"loss/current", "loss/average", "lr/textencoder 1 ", "lr/unet"}
    assert sheet.is_finished


class FullSheet(Sheet):
    """A `Tracker` on a disk that becomes full."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        if step == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().log(values, step)


def test_a_tracker_that_cannot_write_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    full, other = FullSheet(), Sheet()
    recorder = trackers.Recorder([full, other], ["te", "unet"], 4)
    _record(recorder, Plan(4, 1, 4), [1.0, 2.0, 3.0, 4.0], Rate(0.5))
    assert [step for step, _ in full.rows] == [1]
    assert [step for step, _ in other.rows] == [1, 2, 3, 4]
    assert other.is_finished
    assert caplog.messages == ["FullSheet: No space left on device; figures are no longer recorded there"]


def test_an_optimizer_that_finds_its_rate_shows_what_it_found() -> None:
    sheet, plan = Sheet(), Plan(1, 1, 1)
    _record(trackers.Recorder([sheet], ["te", "unet"], 1), plan, [1.0], Rate(0.5, factor=1e-4))
    values = sheet.rows[0][1]
    assert values["lr/unet"] == 0.5
    assert values["lr/d*lr/unet"] == pytest.approx(5e-5)


def test_tensorboard_gets_figures_and_settings_without_paths(tmp_path: Path) -> None:
    config = TrackingConfig(logging_dir=str(tmp_path), log_prefix="cat-", log_config=True)
    settings = {"network_dim": 4, "output_dir": str(tmp_path), "network_args": ["a=1"]}
    started = trackers.start(config, "network_train", settings)
    _record(trackers.Recorder(started, ["a", "unet"], 2), Plan(2, 1, 2), [3.0, 1.0], Rate(0.25))
    (run,) = tmp_path.iterdir()
    assert run.name.startswith("cat-20")
    figures = _scalars(run / "network_train")
    assert figures["loss/current"] == [(1, 3.0), (2, 1.0)]
    assert figures["loss/epoch_average"] == [(2, 2.0)]
    assert figures["lr/unet"] == [(1, 0.25), (2, 0.25)]
    written = b"".join(path.read_bytes() for path in run.rglob("events*"))
    assert b"network_dim" in written
    assert b"a=1" in written
    assert str(tmp_path).encode() not in written


def test_settings_are_recorded_only_if_asked_for(tmp_path: Path) -> None:
    config = TrackingConfig(logging_dir=str(tmp_path), log_tracker_name="mine")
    for tracker in trackers.start(config, "network_train", {"network_dim": 4}):
        tracker.finish()
    (written,) = tmp_path.rglob("events*")
    assert written.parent.name == "mine"
    assert b"network_dim" not in written.read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "is_kept"),
    [
        ("learning_rate", 1e-4, True),
        ("network_module", "networks.lora_flux", True),
        ("network_args", ["train_blocks=single"], True),
        ("base_weights", ["/models/a.safetensors"], False),
        ("vae", "models\\ae.safetensors", False),
        ("vae", "here.safetensors", False),
        ("output_dir", "not_yet_there", False),
    ],
)
def test_settings_for_others_hold_no_paths(
    name: str, value: Any, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.safetensors").touch()
    assert trackers.without_paths({name: value}) == ({name: value} if is_kept else {})


def _wandb_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a run's file: LevelDB's log format after a header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        size, kind = struct.unpack_from("<HB", data, at + 4)  # a checksum comes first
        parts += data[at + 7 : at + 7 + size]
        at += 7 + size
        if 32768 - at % 32768 < 7:  # no record begins in the last bytes of a block
            at += 32768 - at % 32768
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def _read_wandb(folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Return the header and the rows of the one offline run below `folder`."""
    import wandb
    from wandb.proto import wandb_internal_pb2

    wandb.teardown()  # its service writes behind our back, until the process ends
    (path,) = folder.rglob("*.wandb")
    header, rows = {}, []
    for data in _wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "run":
            settings = {item.key: json.loads(item.value_json) for item in record.run.config.update}
            header = {"name": record.run.display_name, "project": record.run.project, "settings": settings}
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
    return header, rows


def test_wandb_gets_figures_name_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "")
    own = tmp_path / "tracker.toml"
    own.write_text("[wandb]\ntags = ['cat']\n[tensorboard]\nfilename_suffix = '.cat'\n")
    config = TrackingConfig(
        logging_dir=str(tmp_path / "logs"),
        log_with="all",
        log_tracker_config=str(own),
        log_config=True,
        wandb_run_name="first try",
    )
    trackers.check(config)
    started = trackers.start(config, "network_train", {"network_dim": 4, "output_dir": "out"})
    _record(trackers.Recorder(started, ["a", "unet"], 2), Plan(2, 1, 2), [3.0, 1.0], Rate(0.25))
    header, rows = _read_wandb(tmp_path / "logs")
    assert (header["name"], header["project"]) == ("first try", "network_train")
    assert header["settings"]["network_dim"] == 4
    assert "output_dir" not in header["settings"]
    assert [row["loss/current"] for row in rows] == [3.0, 1.0]
    assert rows[1]["loss/epoch_average"] == 2.0
    (events,) = (tmp_path / "logs").rglob("events*.cat*")
    assert _scalars(events.parent)["lr/unet"] == [(1, 0.25), (2, 0.25)]


def _picture(folder: Path) -> ImageMade:
    path = folder / "preview.png"
    Image.new("RGB", (4, 2), (255, 0, 0)).save(path)
    return ImageMade(step=3, index=1, prompt="a red cat", path=path)


def test_tensorboard_shows_previews(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    started = trackers.start(TrackingConfig(logging_dir=str(tmp_path / "logs")), "train", {})
    recorder = trackers.Recorder(started, [], 1)
    recorder.image(_picture(tmp_path))
    recorder.ended(Ended(3, "finished"))
    (written,) = (tmp_path / "logs").rglob("events*")
    events = EventAccumulator(str(written.parent))
    events.Reload()
    (shown,) = events.Images("sample_1")
    assert (shown.step, shown.width, shown.height) == (3, 4, 2)
    with Image.open(io.BytesIO(shown.encoded_image_string)) as image:
        assert image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    (text,) = events.Tensors("sample_1/text_summary")
    assert text.tensor_proto.string_val == [b"a red cat"]


def test_wandb_shows_previews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_API_KEY", "")
    config = TrackingConfig(logging_dir=str(tmp_path / "logs"), log_with="wandb")
    recorder = trackers.Recorder(trackers.start(config, "train", {}), [], 1)
    recorder.image(_picture(tmp_path))
    recorder.ended(Ended(3, "finished"))
    _, (row,) = _read_wandb(tmp_path / "logs")
    assert row["_step"] == 3
    (file,) = (tmp_path / "logs").rglob("*.png")
    assert file.read_bytes() == (tmp_path / "preview.png").read_bytes()
    assert (row["sample_1.caption"], row["sample_1.width"]) == ("a red cat", 4)
    assert file.match(str(row["sample_1.path"]))


def test_wandb_without_a_way_to_report_keeps_the_record_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = TrackingConfig(logging_dir=str(tmp_path), log_with="wandb")
    started = trackers.start(config, "network_train", {})
    _record(trackers.Recorder(started, ["a", "unet"], 2), Plan(1, 1, 1), [3.0], Rate(0.25))
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("Weights & Biases cannot be reached (")
    assert "wandb sync" in line
    _, rows = _read_wandb(next(tmp_path.rglob("offline-run-*")))
    assert [row["loss/current"] for row in rows] == [3.0]


def test_a_key_that_was_given_reaches_wandb_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import wandb

    seen = []
    monkeypatch.setenv("WANDB_API_KEY", "the environment's")
    monkeypatch.setattr(wandb, "init", lambda **given: seen.append((os.environ["WANDB_API_KEY"], given)))
    config = TrackingConfig(log_with="wandb", wandb_api_key="very-secret", wandb_run_name="x")
    trackers.start(config, "network_train", {"wandb_run_name": "x"})
    assert seen[0][0] == "very-secret"
    assert "very-secret" not in repr(seen[0][1])
    assert "very-secret" not in repr(config)


def test_a_name_in_the_tracker_s_own_file_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **given: seen.append(given))
    own = tmp_path / "own.toml"
    for text, name in (("entity = 'me'", "asked"), ("[wandb]\nname = 'from the file'", "from the file")):
        own.write_text(text)
        config = TrackingConfig(log_with="wandb", log_tracker_config=str(own), wandb_run_name="asked")
        trackers.start(config, "network_train", {})
        assert seen[-1]["name"] == name
    assert seen[0]["entity"] == "me"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"log_with": "tensorboard"}, "--log_with tensorboard needs --logging_dir"),
        ({"log_with": "all"}, "--log_with all needs --logging_dir"),
        (
            {"logging_dir": "logs", "log_tracker_config": "stray.toml"},
            "--log_tracker_config stray.toml holds flush, which SummaryWriter does not know; it knows log_",
        ),
        (
            {"logging_dir": "logs", "log_tracker_config": "odd.toml"},
            "--log_tracker_config odd.toml does not suit TensorBoard: TypeError",
        ),
        (
            {"logging_dir": "logs", "log_tracker_config": "flat.toml"},
            r"flat.toml: tensorboard is 3; write a table, \[tensorboard\]",
        ),
        ({"log_tracker_config": "nowhere.toml"}, "--log_tracker_config is nowhere.toml: No such file"),
        ({"log_tracker_config": "broken.toml"}, "--log_tracker_config is broken.toml: it is no TOML"),
    ],
)
def test_trackers_that_cannot_work_are_found_before_the_run(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("[wandb", encoding="utf-8")
    Path("stray.toml").write_text("[tensorboard]\nflush = 3\n", encoding="utf-8")
    Path("odd.toml").write_text("[tensorboard]\nmax_queue = 'x'\n", encoding="utf-8")
    Path("flat.toml").write_text("tensorboard = 3\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        trackers.check(TrackingConfig(**given))


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--log_with wandb needs wandb: run .* -m pip install wandb$"):
        trackers.check(TrackingConfig(log_with="wandb"))


def test_the_metrics_file_of_a_resumed_run_has_every_step_once(tmp_path: Path) -> None:
    path, plan = tmp_path / "out" / "x.metrics.jsonl", Plan(2, 1, 4)
    for finished, end in ((0, 3), (2, 4)):  # the third step was lost
        file = MetricsFile(path, ["unet"], finished)
        for step in list(plan.steps(finished))[: end - finished]:
            file.read(Reading(step, float(10 * finished + step.number), 0.5, [Rate(1e-4)], []))
        file.ended(Ended(end, "finished"))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [line for line in lines if "event" not in line]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["loss"] for row in rows] == [1, 2, 23, 24]
    assert rows[0] == {"step": 1, "epoch": 1, "loss": 1.0, "grad_norm": 0.5, "lr/unet": 1e-4}
    assert [line for line in lines if "event" in line] == [{"event": "ended", "step": 4, "how": "finished"}]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_damaged_line_is_left_out_and_the_file_is_whole_at_any_moment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d, "loss": 1}\n' % step for step in range(1, 6)]
    damaged = [b"\0\0\0\0\n", b"[1]\n", b'{"loss": 2}\n', b'{"step": null}\n', b"\xff\n", b'{"st']
    path.write_bytes(b"".join([lines[0], damaged[0], lines[1], *damaged[1:5], *lines[2:], damaged[5]]))
    before, replace = path.read_bytes(), os.replace

    def die(*_: object) -> None:
        assert path.read_bytes() == before
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        MetricsFile(path, ["unet"], 3)
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "replace", replace)
    caplog.clear()
    metrics = MetricsFile(path, ["unet"], 3)
    assert caplog.messages == [f"{path}: 5 lines left out, which cannot be read"]
    assert path.read_bytes() == b"".join(lines[:3])
    metrics.ended(Ended(3, "finished"))
    assert path.read_bytes().count(b"\n") == 4


def test_figures_that_find_no_room_do_not_end_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    metrics = MetricsFile(tmp_path / "metrics.jsonl", ["clip_l", "unet"], 0)
    _record(metrics, Plan(1, 1, 3), [3.0, 2.0, 1.0], Rate(0.25))
    assert caplog.text.count("No space left on device; figures are no longer recorded there") == 1
