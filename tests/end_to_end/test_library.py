"""The program from Python: the page about it, line by line, and that it leaves a process as it was."""

from __future__ import annotations

import logging
import random
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sfumato
from tests import tiny

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Files as the page names them, in the folder that is at work; return the options of a short run."""
    monkeypatch.chdir(tmp_path)
    made = tiny.flux(tmp_path / "made", hidden=32, heads=1, depth=1, depth_single=1)
    names = {"transformer": "flux1-dev", "clip_l": "clip_l", "t5xxl": "t5xxl", "ae": "ae"}
    for part, name in names.items():
        getattr(made, part).rename(tmp_path / f"{name}.safetensors")
    made.tokenizers.rename(tmp_path / "tokenizers")
    tiny.pictures(tmp_path / "photos" / "1_sks dog", 2)
    return {
        "pretrained_model_name_or_path": "flux1-dev.safetensors",
        **{part: f"{part}.safetensors" for part in ("clip_l", "t5xxl", "ae")},
        "train_data_dir": "photos",
        "caption_extension": ".txt",
        "network_train_unet_only": True,
        "cache_latents": True,
        "cache_text_encoder_outputs": True,
        "output_name": "short",
        "resolution": 64,
        "max_data_loader_n_workers": 0,
    }


def code_of_the_page() -> dict[str, Any]:
    """Run the code of the page from its top to its end; return the names that it made."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S))
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_page_does_what_it_says_and_a_run_in_a_thread_can_be_stopped(
    model: dict[str, Any], tmp_path: Path
) -> None:
    names = code_of_the_page()
    assert names["path"] == Path("outputs/cat.safetensors")
    assert [image.size for image in names["images"]] == [(64, 64)] * 2
    assert (tmp_path / "dog.png").exists()
    assert names["batch"].pixels.shape == (1, 3, 64, 64)

    stop = names["StopAfter"](3)
    with ThreadPoolExecutor(1) as thread:
        more = {"max_train_steps": 50, "output_dir": "again"}
        path = thread.submit(sfumato.train, "flux", "lora", observers=[stop], **model, **more).result()
    lines = (tmp_path / "again" / "short.metrics.jsonl").read_text("utf-8").splitlines()
    assert sum('"loss"' in line for line in lines) == 3
    assert load_file(path).keys() == load_file(names["path"]).keys()


def test_a_run_leaves_the_process_as_it_was_and_gives_the_same_again(model: dict[str, Any]) -> None:
    def state() -> list[Any]:
        drawn = random.random(), float(np.random.rand()), float(torch.rand(()))
        handlers = [*logging.getLogger("sfumato").handlers, *logging.getLogger().handlers]
        stops = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        return [drawn, handlers, stops, torch.get_default_dtype(), torch.get_num_threads()]

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

    seeded()
    before = state()
    seeded()
    found = [
        load_file(sfumato.train("flux", "lora", max_train_steps=1, seed=3, output_dir=name, **model))
        for name in ("first", "second")
    ]
    assert state() == before
    assert all(torch.equal(tensor, found[1][key]) for key, tensor in found[0].items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lerning_rate": 1}, "lerning_rate (did you mean --learning_rate?)"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"blocks_to_swap": 1, "cpu_offload_checkpointing": True}, "blocks_to_swap"),
    ],
)
def test_options_are_checked_like_a_command_line(options: dict[str, Any], said: str) -> None:
    with pytest.raises(sfumato.UserError, match=re.escape(said)):
        sfumato.train("flux", "lora", pretrained_model_name_or_path="a.safetensors", **options)


def test_batches_are_those_of_a_training(tmp_path: Path) -> None:
    tiny.pictures(tmp_path / "2_dog", 3)
    read = partial(sfumato.read_dataset, train_data_dir=tmp_path, caption_extension=".txt", resolution=64)
    shown = [batch.paths for batch in read(epochs=2, seed=4, train_batch_size=2)]
    assert len(shown) == 6
    assert sorted(path for paths in shown[:3] for path in paths) == sorted(
        2 * list(map(str, (tmp_path / "2_dog").glob("*.png")))
    )
    assert shown[:3] != shown[3:]
    assert shown == [batch.paths for batch in read(epochs=2, seed=4, train_batch_size=2)]
    with pytest.raises(sfumato.UserError, match="html: that is about a report"):
        read(html="page.html")


@pytest.mark.parametrize("option", ["debug_dataset", "output_config", "show_timesteps", "console_log_file"])
def test_what_is_for_the_command_line_is_refused(option: str) -> None:
    with pytest.raises(sfumato.UserError, match=f"{option}: that is for the command line; leave it out"):
        sfumato.train("flux", "lora", **{option: "x"})


def test_what_belongs_to_an_image_is_not_the_models() -> None:
    with pytest.raises(sfumato.UserError, match="width: give it with the prompt"):
        sfumato.load("flux", "a.safetensors", width=64)
