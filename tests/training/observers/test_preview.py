"""Previews: when, of what, with which weights, and that the run does not notice them."""

from __future__ import annotations

import gc
import logging
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sfumato.adapters.layers.lora import Dropouts, Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.network.rates import ParameterGroup
from sfumato.config.run.output.preview import PreviewConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.config.run.training.optimizer import OptimizerConfig
from sfumato.errors import UserError
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import DENOISER, VAE, Family
from sfumato.models.interface.parts import Parts
from sfumato.nn import checkpointing
from sfumato.sampling.output.image_files import read_request
from sfumato.training.core.audience import Audience
from sfumato.training.core.commands import Command, Commands
from sfumato.training.core.events import ImageMade, Started
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Plan, Step
from sfumato.training.core.precision import Precision
from sfumato.training.observers import preview
from sfumato.training.observers.preview import PreviewObserver, Previews
from sfumato.training.observers.saving import Names
from sfumato.training.run.loop import Loop
from sfumato.training.trainables.objective import StepLoss
from sfumato.training.update import optimizers
from sfumato.training.update.optimizer_step import Update
from sfumato.training.update.stepping import Stepping
from tests import tiny
from tests.sampling.fake import FakeFamily

CPU = torch.device("cpu")
FP32 = Precision(CPU, torch.float32, torch.float32)
START = Started(Path("cat.safetensors"), 0, 4, Commands())


@dataclass
class OneOf:
    """Stands for process `rank` of `world`."""

    rank: int = 0
    world: int = 1

    def sum_(self, tensor: Tensor) -> None:
        """Sum over one process."""

    def of_others(self, things: list[Any]) -> list[Any]:
        return []


@pytest.fixture(autouse=True)
def _log_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("sfumato"), "propagate", True)


@pytest.fixture(scope="module", autouse=True)
def _collecting_garbage_is_quick() -> Iterator[None]:
    """Every preview collects garbage; without this, each would walk over all imported libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"))


def flux(files: tiny.TinyFlux) -> FluxFamily:
    return FluxFamily(
        files.transformer, files.clip_l, files.t5xxl, files.ae, files.tokenizers, t5_max_length=16
    )


def planned(
    folder: Path, text: str, family: Family | None = None, size: str = " --w 64 --h 64", **options: Any
) -> Previews:
    """Return previews of a prompt file with these lines, every step if nothing else is said."""
    path = folder / "prompts.txt"
    path.write_text("\n".join(line + size for line in text.splitlines()), encoding="utf-8")
    config = PreviewConfig(sample_prompts=str(path), **(options or {"sample_every_n_steps": 1}))
    made = preview.plan(config, NoiseConfig(), family or FakeFamily())  # type: ignore[arg-type]
    assert made is not None
    return made


def network_of(family: Family, parts: Parts, *adapted: str) -> AdapterNetwork:
    """Return attached rank-2 adapters with dropout, which draws from the global generator."""
    torch.manual_seed(0)
    targets = [target for part in adapted for target in family.adapter_targets(part, parts[part])]
    network = AdapterNetwork.from_targets(targets, lambda target: Lora(target, 2, 2, Dropouts(neuron=0.3)))
    network.attach()
    return network


def observer(
    previews: Previews,
    folder: Path,
    parts: Parts | None = None,
    network: AdapterNetwork | None = None,
    processes: OneOf | None = None,
    **settings: Any,
) -> PreviewObserver:
    parts = parts or Parts(previews.family, CPU)
    names = Names(folder, "cat", ".safetensors")
    return previews.observer(parts, network, names, FP32, processes or OneOf(), **settings)  # type: ignore[arg-type]


def made(folder: Path) -> list[Path]:
    return sorted((folder / "sample").glob("*"))


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


class Learner:
    """Trains adapters to predict nothing, through dropout and noise from every kind of generator."""

    file_holds_all = False

    def __init__(
        self, family: Family, parts: Parts, network: AdapterNetwork, text: Mapping[str, Tensor]
    ) -> None:
        self.family, self.parts, self.network, self.text = family, parts, network, text

    def groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(list(self.network.parameters()), None, "all")]

    def step_begins(self, step: Step) -> None:
        if step.number == 1:
            self.network.on_epoch_start()

    def step_ends(self) -> Mapping[str, Tensor]:
        return {}

    def loss(self, batch: Any, rng: torch.Generator) -> StepLoss:
        self.network.set_strength(0.7)
        noisy = torch.randn(1, self.family.latents.channels, 4, 4, generator=rng) + random.random()
        tokens = self.family.tokenize(["a cat"])
        text = {**self.text}
        for name in self.family.text_outputs:
            if name in self.parts:
                text |= self.family.encode_text({name: self.parts[name]}, tokens)
        said = Conditioning(text, torch.ones(1))
        error = self.family.predict(self.parts[DENOISER], noisy, torch.tensor([500.0]), said).float()
        return StepLoss((error**2).flatten(1).mean(1), torch.tensor([500.0]))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self.network.state_dict(keep_vars=True).items())

    def save(self, path: Path, metadata: Mapping[str, str], step: Step) -> None:
        raise AssertionError("nothing is saved here")


@dataclass
class Nothing:
    paths: tuple[str, ...] = ()


def trained(family: Family, trained_encoder: str, folder: Path | None) -> dict[str, Tensor]:
    """Return the weights after four steps, with previews before and after each if there is a folder."""
    parts = Parts(family, CPU)
    network = network_of(family, parts, trained_encoder, DENOISER)
    if isinstance(family, FluxFamily):
        checkpointing.enable(family.blocks(DENOISER, parts[DENOISER]))
    frozen = [name for name in family.text_outputs if name != trained_encoder]
    with torch.no_grad():
        tokens = family.tokenize(["a cat"])
        text = {k: v for name in frozen for k, v in family.encode_text({name: parts[name]}, tokens).items()}
    observers = []
    if folder:
        line = "a dog --s 2 --d 1 --c 2\na cat --s 1"
        previews = planned(folder, line, family, sample_every_n_steps=1, sample_at_first=True)
        previews.encode(parts, frozen)
        observers = [observer(previews, folder, parts, network)]
    parts.release(*frozen)
    learner = Learner(family, parts, network, text)
    optimizer = optimizers.plan(OptimizerConfig()).build(
        [{"params": g.parameters, "lr": 0.01} for g in learner.groups()], 0.01
    )
    update = Update(Stepping(optimizer), OneOf(), max_grad_norm=1.0)  # type: ignore[arg-type]
    schedule = Plan(num_batches=4, group=1, num_steps=4)
    audience = Audience(observers)
    audience.started(START)
    Loop(learner, update, schedule, (Nothing() for _ in range(4)), 7, audience).run()  # type: ignore[arg-type]
    return {name: tensor.detach().clone() for name, tensor in learner.tensors()}


@pytest.mark.parametrize("kind", ["by hand", "real"])
def test_a_run_with_previews_trains_the_same_weights_bit_for_bit(
    kind: str, files: tiny.TinyFlux, tmp_path: Path
) -> None:
    def family() -> Family:
        return flux(files) if kind == "real" else FakeFamily()  # type: ignore[return-value]

    encoder = "clip_l" if kind == "real" else "first"
    plain, watched = trained(family(), encoder, None), trained(family(), encoder, tmp_path)
    assert len(made(tmp_path)) == 10
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    seeded = [pixels(path) for path in made(tmp_path) if path.stem.endswith("_1")]
    assert len(set(seeded)) == 5, "every step changes the image of the same seed"


def test_files_are_named_by_epoch_step_prompt_moment_and_given_seed(tmp_path: Path) -> None:
    watching = observer(planned(tmp_path, "a cat --d 7 --s 1\na dog --s 1"), tmp_path)
    watching.after(Plan(2, 1, 20).step(12))
    first, second = (path.name for path in made(tmp_path))
    assert re.fullmatch(r"cat_000012_00_20\d{12}_7\.png", first)
    assert re.fullmatch(r"cat_000012_01_20\d{12}\.png", second)
    watching.names = Names(tmp_path / "nameless", None, ".safetensors")
    watching.previews.rhythm = replace(watching.previews.rhythm, every_epochs=2)
    watching.after(Plan(2, 1, 20).step(8))
    assert re.fullmatch(r"e000004_00_20\d{12}_7\.png", made(tmp_path / "nameless")[0].name)


def marks(**options: Any) -> list[str]:
    """Return how the previews of seven steps, three an epoch, are marked."""
    rhythm = preview.rhythm_for(PreviewConfig(**options))
    return [mark for step in Plan(3, 1, 7).steps() if (mark := rhythm.mark(step))]


def test_epochs_win_over_steps(caplog: pytest.LogCaptureFixture) -> None:
    assert marks(sample_every_n_steps=3) == ["000003", "000006"]
    assert not caplog.messages
    both = marks(sample_every_n_steps=2, sample_every_n_epochs=1)
    assert both == ["e000001", "e000002", "e000003"], "the end of the run ends its last epoch"
    assert caplog.messages == ["--sample_every_n_steps is left out, since --sample_every_n_epochs is given"]
    assert marks(sample_every_n_epochs=2) == ["e000002"]


def test_zero_and_less_is_never_and_said(caplog: pytest.LogCaptureFixture) -> None:
    assert marks(sample_every_n_steps=0) == []
    assert marks(sample_every_n_steps=4, sample_every_n_epochs=-1) == ["000004"]
    assert "--sample_every_n_steps is 0, so it makes no previews" in caplog.messages[0]
    assert "--sample_every_n_epochs is -1" in caplog.messages[1]


def test_nothing_is_planned_unless_a_time_and_a_file_are_given(caplog: pytest.LogCaptureFixture) -> None:
    def plan(**options: Any) -> Previews | None:
        return preview.plan(PreviewConfig(**options), NoiseConfig(), FakeFamily())  # type: ignore[arg-type]

    assert plan() is None
    assert plan(sample_prompts="no such file.txt") is None
    assert not caplog.messages
    assert plan(sample_at_first=True) is None
    assert "--sample_prompts, the file that says of what, is not given" in caplog.text


def test_a_file_without_prompts_makes_no_previews(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("")
    config = PreviewConfig(sample_prompts=str(tmp_path / "a.txt"), sample_at_first=True)
    assert preview.plan(config, NoiseConfig(), FakeFamily()) is None  # type: ignore[arg-type]
    assert "a.txt holds no prompt" in caplog.text


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", None, r"--sample_prompts: prompt file .*a\.txt cannot be read"),
        ("a.md", "a cat", r"ends in '\.md'"),
        ("a.toml", "[prompt", r"a\.toml is not valid"),
        ("a.txt", "a\nb --w -8", r"prompt 2: width is -8; use 1 or more"),
    ],
)
def test_a_wrong_prompt_file_stops_the_run_before_anything_loads(
    name: str, text: str | None, message: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    config = PreviewConfig(sample_prompts=str(tmp_path / name), sample_at_first=True)
    with pytest.raises(UserError, match=message):
        preview.plan(config, NoiseConfig(), FakeFamily())  # type: ignore[arg-type]


def test_what_a_prompt_leaves_open_is_as_in_sd_scripts(tmp_path: Path) -> None:
    lines = "a cat\na dog --w 100 --h 20 --s 3 --l 5 --d 9 --c 2 --n blue"
    open_, full = planned(tmp_path, lines, size="").prompts
    usual = open_.request
    assert (usual.width, usual.height, usual.steps) == (512, 512, 20)
    assert (usual.guidance, usual.cfg_scale, usual.sampler) == (2.0, 1.0, "euler")
    assert not open_.is_seeded
    assert open_.now().seed != open_.now().seed
    said = full.now()
    assert (said.width, said.height, said.steps, said.seed) == (96, 64, 3, 9)
    assert (said.guidance, said.cfg_scale, said.negative_prompt) == (5.0, 2.0, "blue")


@pytest.mark.parametrize(
    ("line", "option", "sampler", "warning"),
    [
        ("a", "ddim", "euler", None),
        ("a", "k_euler", "euler", None),
        ("a --ss heun", "lms", "heun", None),
        ("a", "dpmsolver++", "euler", "previews are generated with euler instead of dpmsolver++"),
        ("a --ss lms\nb --ss pndm", "ddim", "euler", "with euler instead of lms, pndm"),
        ("a --ss oiler", "ddim", "euler", "instead of oiler (oiler is no sampler's name)"),
    ],
)
def test_every_sampler_name_is_taken(
    line: str,
    option: str,
    sampler: str,
    warning: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    previews = planned(tmp_path, line, sample_at_first=True, sample_sampler=option)
    assert {prompt.request.sampler for prompt in previews.prompts} == {sampler}
    assert len(caplog.messages) == (warning is not None)
    assert warning is None or warning in caplog.text


def test_prompts_are_encoded_once_and_frozen_encoders_are_not_needed_again(tmp_path: Path) -> None:
    previews = planned(tmp_path, "a --s 1 --c 2 --n blue\nb --s 1\na --s 1")
    family, parts = previews.family, Parts(previews.family, CPU)
    previews.encode(parts, ["first", "second"])
    assert family.encoded == [("first", 1), ("second", 1)] * 3, "a, blue and b"  # type: ignore[attr-defined]
    parts.release("first", "second")
    watching = observer(previews, tmp_path, parts)
    for step in Plan(2, 1, 2).steps():
        watching.after(step)
    assert len(family.encoded) == 6  # type: ignore[attr-defined]
    assert parts.loaded == ["first", "second", DENOISER, VAE, DENOISER, VAE]


def test_kept_texts_draw_what_live_encoders_draw(tmp_path: Path) -> None:
    for name, encoders in (("kept", ["first", "second"]), ("mixed", ["second"]), ("live", [])):
        previews = planned(tmp_path, "a --s 2 --d 3")
        previews.encode(parts := Parts(previews.family, CPU), encoders)
        observer(previews, tmp_path / name, parts).after(Plan(2, 1, 2).step(1))
    images = {pixels(made(tmp_path / name)[0]) for name in ("kept", "mixed", "live")}
    assert len(images) == 1


@pytest.mark.parametrize("adapted", ["first", DENOISER])
def test_previews_show_the_adapter_as_trained_so_far(adapted: str, tmp_path: Path) -> None:
    previews = planned(tmp_path, "a --s 2 --d 3")
    parts = Parts(previews.family, CPU)
    network = network_of(previews.family, parts, adapted)
    previews.encode(parts, ["second"])
    watching = observer(previews, tmp_path, parts, network)
    watching.after(Plan(2, 1, 3).step(1))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)
    watching.after(Plan(2, 1, 3).step(2))
    network.detach()
    network.merge(1.0)
    watching.network = None
    watching.after(Plan(2, 1, 3).step(3))
    untrained, after, merged = (pixels(path) for path in made(tmp_path))
    assert untrained != after
    apart = np.frombuffer(after, np.uint8).astype(int) - np.frombuffer(merged, np.uint8)
    assert np.abs(apart).max() <= 1, "no dropout, full strength"


def test_parts_loaded_for_images_alone_are_released_and_others_stay(tmp_path: Path) -> None:
    previews = planned(tmp_path, "a --s 1")
    parts = Parts(previews.family, CPU)
    denoiser = parts[DENOISER]
    observer(previews, tmp_path, parts).after(Plan(2, 1, 2).step(1))
    assert parts.loaded == [DENOISER, "first", "second", VAE]
    assert [part for part in (DENOISER, VAE, "first", "second") if part in parts] == [DENOISER]
    assert parts[DENOISER] is denoiser
    vae = parts[VAE]
    observer(previews, tmp_path, parts).after(Plan(2, 1, 2).step(2))
    assert parts[VAE] is vae


def test_no_generator_moves_and_modes_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    previews = planned(tmp_path, "a --s 1")
    family, parts = previews.family, Parts(previews.family, CPU)
    decode = family.decode_image
    seen: list[tuple[bool, bool]] = []

    def greedy(vae: nn.Module, latents: Tensor) -> Tensor:
        torch.rand(1), random.random(), np.random.rand()
        seen.append((torch.is_grad_enabled(), any(module.training for module in network.modules())))
        return decode(vae, latents)

    monkeypatch.setattr(family, "decode_image", greedy)
    network = network_of(family, parts, DENOISER)
    network.train()
    network.layers[0].eval()  # type: ignore[attr-defined]
    modes = [module.training for module in network.modules()]

    def generators() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[union-attr]

    before = generators()
    observer(previews, tmp_path, parts, network).after(Plan(2, 1, 2).step(1))
    assert seen == [(False, False)]
    assert generators() == before
    assert [module.training for module in network.modules()] == modes
    assert set(modes) == {True, False}


def test_the_optimizer_is_told_in_every_process(tmp_path: Path) -> None:
    told: list[str] = []

    @contextmanager
    def evaluating() -> Iterator[None]:
        told.append("eval")
        yield
        told.append(f"train, {len(made(tmp_path))} made")

    for rank in range(3):
        previews = planned(tmp_path, "a --s 1\nb --s 1")
        watching = observer(previews, tmp_path, processes=OneOf(rank, 3), evaluating=evaluating)
        watching.after(Plan(2, 1, 2).step(1))
    assert told == ["eval", "train, 1 made", "eval", "train, 2 made", "eval", "train, 2 made"]


def test_processes_share_the_prompts(tmp_path: Path) -> None:
    told: list[ImageMade] = []

    class Notebook(Observer):
        def image(self, event: ImageMade) -> None:
            told.append(event)

    for rank in range(2):
        previews = planned(tmp_path, "a --s 1\nb --s 1\nc --s 1")
        observer(
            previews,
            tmp_path / str(rank),
            processes=OneOf(rank, 2),
            audience=Notebook(),
        ).after(Plan(2, 1, 2).step(1))
    assert [(event.index, event.prompt, event.step) for event in told] == [
        (0, "a", 1),
        (2, "c", 1),
        (1, "b", 1),
    ]
    assert all(event.path.is_file() for event in told)
    assert [path.name.split("_")[2] for rank in "01" for path in made(tmp_path / rank)] == ["00", "02", "01"]


def test_previews_that_somebody_asks_for_are_made_once(tmp_path: Path) -> None:
    plan, watching = Plan(2, 1, 4), observer(planned(tmp_path, "a --s 1", sample_every_n_steps=2), tmp_path)
    for number in (1, 2):
        watching.after(plan.step(number))
        watching.asked(Command.SAMPLE, plan.step(number))
    assert [path.name[:10] for path in made(tmp_path)] == ["cat_000001", "cat_000002"]


def test_first_previews_come_only_if_asked_for(tmp_path: Path) -> None:
    observer(planned(tmp_path, "a --s 1"), tmp_path).started(START)
    assert made(tmp_path) == []
    observer(planned(tmp_path, "a --s 1", sample_at_first=True), tmp_path).started(START)
    assert made(tmp_path)[0].name.startswith("cat_e000000_00_")


def test_an_image_tells_what_it_was_made_from(tmp_path: Path) -> None:
    observer(planned(tmp_path, "a red cat --s 1"), tmp_path).after(Plan(2, 1, 4).step(3))
    (path,) = made(tmp_path)
    assert (read_request(path).prompt, read_request(path).width) == ("a red cat", 64)
    with Image.open(path) as image:
        assert "Epoch: 2, Step: 3" in image.info["parameters"]


@pytest.mark.parametrize("error", [UserError("the disk is full"), RuntimeError("out of memory\nlong story")])
def test_a_preview_that_fails_is_a_warning_and_the_next_is_made(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    previews = planned(tmp_path, "a --s 1\nb --s 1")
    decode: Callable[..., Tensor] = previews.family.decode_image
    calls: list[int] = []

    def failing(vae: nn.Module, latents: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise error
        return decode(vae, latents)

    monkeypatch.setattr(previews.family, "decode_image", failing)
    parts = Parts(previews.family, CPU)
    observer(previews, tmp_path, parts).after(Plan(2, 1, 2).step(1))
    assert [path.name.split("_")[2] for path in made(tmp_path)] == ["01"]
    assert f"preview 0 is left out, training goes on: {str(error).splitlines()[0]}" in caplog.messages
    assert VAE not in parts


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sample").write_text("not a folder")
    observer(planned(tmp_path, "a --s 1"), tmp_path).after(Plan(2, 1, 2).step(1))
    assert "preview 0 is left out, training goes on" in caplog.text


def test_who_ends_the_run_need_not_wait_for_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    previews = planned(tmp_path, "a --s 9\nb --s 9")
    parts = Parts(previews.family, CPU)
    watching = observer(
        previews,
        tmp_path,
        parts,
        should_stop=lambda: DENOISER in parts and len(parts[DENOISER].calls) >= 2,  # type: ignore[arg-type]
    )
    kept = parts[DENOISER]
    watching.after(Plan(2, 1, 2).step(1))
    assert len(kept.calls) == 2  # type: ignore[arg-type]
    assert made(tmp_path) == []
    assert "preview 0 is left out, training goes on: the run is to end" in caplog.text
    assert "preview 1" not in caplog.text


def test_sixteen_bit_runs_draw_under_autocast_but_keep_a_float32_vae(tmp_path: Path) -> None:
    previews = planned(tmp_path, "a --s 1")
    stored = {DENOISER: torch.bfloat16, VAE: torch.float32, "first": torch.bfloat16}
    parts = Parts(previews.family, CPU, stored)
    denoiser, seen = parts[DENOISER], []
    parts[VAE].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    precision = Precision(CPU, torch.bfloat16, torch.float32)
    names = Names(tmp_path, "cat", ".safetensors")
    watching = previews.observer(parts, None, names, precision, OneOf())  # type: ignore[arg-type]
    watching.after(Plan(2, 1, 2).step(1))
    assert denoiser.calls[0]["dtype"] == torch.bfloat16  # type: ignore[index, union-attr]
    assert seen == [torch.float32]
    assert len(made(tmp_path)) == 1
