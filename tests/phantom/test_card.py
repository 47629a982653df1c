"""The path of CUDA, on a card that is none: numbers as on the processor, waits counted, faults found."""

from __future__ import annotations

import multiprocessing
import shlex
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sfumato.cli.main import script as run_here
from tests import tiny
from tests.phantom import card, runs
from tests.phantom.runs import Outcome

pytestmark = pytest.mark.skipif(
    not card.IS_POSSIBLE, reason="no compiler for the phantom card, or a PyTorch with CUDA"
)

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 5 --seed 5
--learning_rate 1e-3 --output_name model
"""
CACHED = "--cache_latents --cache_text_encoder_outputs"
FLUX = f"--network_module networks.lora_flux --network_dim 2 --t5xxl_max_token_length 64 {SHORT}"
SD3 = FLUX.replace("lora_flux", "lora_sd3")
SGD = "--optimizer_type SGD --learning_rate 0.1"  # AdamW makes much of gradients that are nearly nothing
UNET = f"--network_module networks.lora --network_dim 2 {SHORT} {SGD}"
WHOLE = f"--save_model_as safetensors --max_grad_norm 0 {SHORT} {SGD} --learning_rate 0.001"
WORD = f"--save_model_as safetensors --use_object_template --token_string zxqk {SHORT} {SGD} --init_word cat"
FULL = f"--t5xxl_max_token_length 64 --max_grad_norm 0 {CACHED} {SHORT}"
LIVE = "--gradient_accumulation_steps 2"
BF16 = "--mixed_precision bf16 --full_bf16"
SWAPPED = "--blocks_to_swap 1"
ADAFACTOR = (
    "--optimizer_type adafactor --optimizer_args relative_step=False scale_parameter=False warmup_init=False"
)
OFFLOADED = "--gradient_checkpointing --cpu_offload_checkpointing"

RUNS = {
    "flux, adapter, swapped": ("flux_train_network", f"{FLUX} {CACHED} --network_train_unet_only {SWAPPED}"),
    "sd, adapter, live": ("train_network", f"{UNET} {LIVE}"),
    "flux, adapter, offloaded": (
        "flux_train_network",
        f"{FLUX} {CACHED} --network_train_unet_only {OFFLOADED}",
    ),
    "flux, full": ("flux_train", FULL),
    "flux, full, fused, swapped": (
        "flux_train",
        f"{FULL} {ADAFACTOR} --fused_backward_pass {SWAPPED}",
    ),
    "flux, full in bfloat16": ("flux_train", f"{FULL} {BF16}"),
    "flux, adapter, live": ("flux_train_network", f"{FLUX} {LIVE}"),
    "sdxl, adapter, live": ("sdxl_train_network", f"{UNET} {LIVE}"),
    "sdxl, adapter": ("sdxl_train_network", f"{UNET} {CACHED} --network_train_unet_only"),
    "sdxl, adapter, swapped": (
        "sdxl_train_network",
        f"{UNET} {CACHED} --network_train_unet_only --blocks_to_swap 4",
    ),
    "sd, adapter, swapped, checkpointed": (
        "train_network",
        f"{UNET} --cache_latents --network_train_unet_only --blocks_to_swap 4 --gradient_checkpointing",
    ),
    # Not with the U-Net: latents that differ by 1e-7 change its first gradients by 1e-3 on any device.
    "flux, oft": (
        "flux_train_network",
        f"{FLUX} {CACHED} {SGD} --network_train_unet_only --network_module networks.oft_flux",
    ),
    "sd, loha": ("train_network", f"{UNET} --cache_latents --network_module networks.loha"),
    "sd, lokr": ("train_network", f"{UNET} --cache_latents --network_module networks.lokr"),
    "sd, noise": (
        "train_network",
        f"{UNET} --cache_latents --noise_offset 0.1 --adaptive_noise_scale 0.1 --min_snr_gamma 5 "
        "--multires_noise_iterations 3 --ip_noise_gamma 0.1",
    ),
    "sd, inpainting": ("train_network", f"{UNET} --train_inpainting --network_train_unet_only"),
    "sd3, adapter, live": ("sd3_train_network", f"{SD3} {LIVE} --clip_l_dropout_rate 0.5"),
    "sd3, adapter, swapped": (
        "sd3_train_network",
        f"{SD3} {CACHED} --network_train_unet_only {SWAPPED}",
    ),
    "sd3, whole, with its text encoders": (
        "sd3_train",
        f"{WHOLE} {LIVE} --t5xxl_max_token_length 64 --train_text_encoder --train_t5xxl "
        "--clip_l_dropout_rate 0.5 --enable_scaled_pos_embed --pos_emb_random_crop_rate 0.5",
    ),
    "sd3, whole, fused, swapped": (
        "sd3_train",
        f"{WHOLE} {CACHED} --t5xxl_max_token_length 64 --fused_backward_pass {SWAPPED}",
    ),
    "sd3, whole, T5 on the processor": (
        "sd3_train",
        f"{WHOLE} --t5xxl_max_token_length 64 --cache_latents --t5xxl_device cpu",
    ),
    "sd, whole, with its text encoder": ("train_db", f"{WHOLE} --gradient_accumulation_steps 2"),
    "sd, whole, fused": ("fine_tune", f"{WHOLE} --fused_backward_pass --cache_latents"),
    "sdxl, whole, encoders, blocks": (
        "sdxl_train",
        f"{WHOLE} --train_text_encoder --learning_rate_te1 1e-4 --block_lr {','.join(['1e-3'] * 22 + ['0'])}",
    ),
    "sdxl, whole, in groups, cached": (
        "sdxl_train",
        f"{WHOLE} {CACHED} --fused_optimizer_groups 5 --gradient_checkpointing",
    ),
    "sd, word": ("train_textual_inversion", f"{WORD} {LIVE}"),
    "sd, word for each layer": ("train_textual_inversion_XTI", WORD),
    "sd, adapter and word": ("train_network", f"{UNET} --train_words zxqk --train_words_init cat"),
    "sdxl, word, cached": ("sdxl_train_textual_inversion", f"{WORD} --cache_latents"),
    "flux, controlnet, swapped": (
        "flux_train_control_net",
        f"{FULL} {SGD} {SWAPPED}",
    ),
    "sd, controlnet": ("train_control_net", f"{WHOLE} --cache_latents"),
    "sdxl, controlnet": ("sdxl_train_control_net", f"{WHOLE} {CACHED} --gradient_checkpointing"),
    "sdxl, lllite": (
        "sdxl_train_control_net_lllite",
        f"{SHORT} {SGD} {CACHED} --cond_emb_dim 8 --network_dim 4",
    ),
    "flux, state saved": ("flux_train_network", f"{FLUX} {CACHED} --network_train_unet_only --save_state"),
}
QUICK = ("flux, adapter, swapped",)
"""Five seconds for each run and fault; a U-Net takes half a minute, and shows no more of how tensors go."""
FAULTS = {
    "a block is used before it has come": "flux, adapter, swapped",
    "blocks are read before they are home": "flux, full, fused, swapped",
    "a checkpoint is used before it has come": "flux, adapter, offloaded",
    "memory is given away while it is copied": "flux, adapter, offloaded",
    "a loss is read before it has come": "flux, adapter, swapped",
    "weights are written before they have come": "flux, adapter, swapped",
    "tokens stay in RAM": "flux, adapter, live",
    "noise stays in RAM": "flux, adapter, swapped",
    "a generator is of the wrong device": "flux, full in bfloat16",
    "batches are not pinned": "flux, adapter, swapped",
}
SD = ("train_network", "train_db", "fine_tune", "train_textual_inversion", "train_textual_inversion_XTI")
SDXL = ("sdxl_train_network", "sdxl_train", "sdxl_train_textual_inversion")
SDXL_CONTROL = ("sdxl_train_control_net", "sdxl_train_control_net_lllite")
MOST_WAITS = 1
"""In a step: for the loss of the step before."""
MOST_AT_END = 12
LAYERED = "sd, word for each layer"
"""Its file has vectors for 16 layers, which come to the host one by one."""


def _marked(names: dict[str, object] | dict[str, str], quick: Callable[[str], bool]) -> list[object]:
    slow = pytest.mark.slow
    return [name if quick(name) else pytest.param(name, marks=slow) for name in names]


@dataclass
class Card:
    """Runs on the card and, where they are needed to compare with, on the processor; each is made once."""

    folder: Path
    process: ProcessPoolExecutor
    places: dict[str, list[str]]
    known: dict[tuple[str, str | None], Outcome] = field(default_factory=dict)

    def run(self, name: str, fault: str | None = None) -> Outcome:
        if (name, fault) not in self.known:
            script, arguments = self._command(name, self.file(name, fault).parent)
            log = self.folder / "log.txt"
            self.known[name, fault] = self.process.submit(runs.train, script, arguments, log, fault).result()
        return self.known[name, fault]

    def file(self, name: str, fault: str | None = None) -> Path:
        return self.folder / f"{name}, {fault}" / "model.safetensors"

    def difference(self, name: str, fault: str | None = None) -> float:
        """Return how far what was trained on the card is from what the processor trains."""
        expected = self.folder / f"{name}, here" / "model.safetensors"
        if not expected.exists():
            script, arguments = self._command(name, expected.parent)
            assert run_here(script, arguments) == 0
        return runs.difference(self.file(name, fault), expected)

    def _command(self, name: str, out: Path) -> tuple[str, list[str]]:
        script, options = RUNS[name]
        return script, [*self.places[script], "--output_dir", str(out), *shlex.split(options)]


@pytest.fixture(scope="module")
def on_card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Card]:
    folder = tmp_path_factory.mktemp("card")
    tiny.pictures(folder / "data" / "1_cat", 4, (64, 64))
    flux = tiny.flux(folder / "flux", hidden=32, heads=1, depth=3, depth_single=4).arguments
    sd3 = tiny.sd3(folder / "sd3", hidden=64, depth=6).arguments
    tiny.pictures(folder / "control", 4, (64, 64), seed=1, captions=None)
    models = {
        "flux_train_network": flux,
        "flux_train_control_net": flux,
        "flux_train": flux,
        **dict.fromkeys(("sd3_train_network", "sd3_train"), sd3),
        **dict.fromkeys((*SD, "train_control_net"), tiny.sd(folder / "sd").arguments),
        **dict.fromkeys((*SDXL, *SDXL_CONTROL), tiny.sdxl(folder / "sdxl").arguments),
    }
    places = {name: [*model, "--train_data_dir", str(folder / "data")] for name, model in models.items()}
    for name in ("flux_train_control_net", "train_control_net", *SDXL_CONTROL):
        places[name] += ["--conditioning_data_dir", str(folder / "control")]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), runs.begin) as process:
        yield Card(folder, process, places)


@pytest.mark.parametrize("name", _marked(RUNS, lambda name: name in QUICK))
def test_a_card_trains_what_the_processor_trains(name: str, on_card: Card) -> None:
    outcome = on_card.run(name)
    assert outcome.status == 0, outcome.shown[-3000:]
    if BF16 not in RUNS[name][1]:
        assert on_card.difference(name) < 1e-4


@pytest.mark.parametrize("name", _marked(RUNS, lambda name: name in QUICK))
def test_a_step_waits_for_nothing_but_the_loss_of_the_one_before(name: str, on_card: Card) -> None:
    outcome = on_card.run(name)
    assert len(outcome.waits) >= 2
    assert max(outcome.waits) <= MOST_WAITS, outcome.where
    assert outcome.at_end <= (MOST_AT_END + 16 if name == LAYERED else MOST_AT_END), outcome.where


@pytest.mark.parametrize("fault", _marked(FAULTS, lambda fault: FAULTS[fault] in QUICK))
def test_a_fault_is_found(fault: str, on_card: Card) -> None:
    name = FAULTS[fault]
    sound, broken = on_card.run(name), on_card.run(name, fault)
    assert sound.status == 0
    is_found = (
        broken.status != 0
        or max(broken.waits) > MOST_WAITS
        or (BF16 not in RUNS[name][1] and on_card.difference(name, fault) > 1e-4)
    )
    assert is_found


def test_every_fault_has_a_run_that_shows_it() -> None:
    assert FAULTS.keys() == runs.FAULTS.keys()
