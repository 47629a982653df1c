"""Every sampler of discrete-time models against the scheduler of the same name in diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.models.interface.family import Prediction
from sfumato.sampling import sampler_names
from sfumato.sampling.request import Request
from sfumato.sampling.spaces import DiscreteSpace

SHAPE = (1, 4, 6, 8)
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"steps_offset": 1}
TRAILING = {"timestep_spacing": "trailing"}
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", LEADING | {"clip_sample": False}),
    "pndm": ("PNDMScheduler", LEADING | {"skip_prk_steps": True}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm_2": ("KDPM2DiscreteScheduler", {}),
    "dpm_2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmsolver": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsingle": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
}

WEIGHTS = torch.randn((4, 4), generator=torch.Generator().manual_seed(5)) / 2


def model(x: Tensor, timestep: float) -> Tensor:
    """Answer smoothly, depending on every input and on the timestep, and within reason."""
    level = float(torch.sigmoid(torch.tensor((float(timestep) - 400) / 150)))
    mixed = torch.einsum("oc,bchw->bohw", WEIGHTS, x)
    return level * x + (1 - level) * torch.tanh(mixed + level)


def theirs(name: str, steps: int, seed: int, **options: Any) -> tuple[Tensor, list[float]]:
    """Return the latents that diffusers makes, and the timesteps at which it asks the model."""
    import diffusers

    kind, own = SCHEDULERS[name]
    scheduler = getattr(diffusers, kind)(**SCHEDULE, **{**own, **options})
    scheduler.set_timesteps(steps)
    rng, asked = torch.Generator().manual_seed(seed), []
    extra = {"generator": rng} if name in ("euler_a", "dpm_2_a") else {}
    x = torch.randn(SHAPE, generator=rng) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        shown = scheduler.scale_model_input(x, timestep)
        asked.append(float(timestep))
        x = scheduler.step(model(shown, timestep), timestep, x, **extra).prev_sample
    return x, asked


def ours(
    name: str, steps: int, seed: int, is_velocity: bool = False, zero_terminal: bool = False
) -> tuple[Tensor, list[float]]:
    space = DiscreteSpace(sampler_names.DISCRETE[name], is_velocity, zero_terminal)
    rng, asked = torch.Generator().manual_seed(seed), []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(space.timestep(sigma))
        return space.clean(model(space.shown(x, sigma), asked[-1]), x, sigma)

    sigmas = space.sigmas(Request("", steps=steps))
    start = space.start(torch.randn(SHAPE, generator=rng), float(sigmas[0]))
    return space.end(space.sampler(denoise, start, sigmas, rng), float(sigmas[-1])), asked


def difference(one: Tensor, other: Tensor) -> float:
    assert one.isfinite().all()
    return float((one - other).abs().max() / other.abs().max())


def test_every_name_of_sd_scripts_is_a_sampler() -> None:
    from typing import get_args, get_type_hints

    from sfumato.config.run.output.preview import PreviewConfig

    known = get_args(get_type_hints(PreviewConfig)["sample_sampler"])
    assert len(known) == 16
    for kind in (Prediction.EPSILON, Prediction.VELOCITY):
        assert {sampler_names.own_name(name, kind) for name in known} == set(SCHEDULERS)
    assert {sampler_names.own_name(name, Prediction.FLOW) for name in known} == {"euler", "heun", None}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("steps", [2, 7, 10, 20])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_equal_those_of_the_public_scheduler(name: str, steps: int) -> None:
    made, asked = ours(name, steps, seed=3)
    expected, visited = theirs(name, steps, seed=3)
    assert asked == pytest.approx(visited, abs=0.05)
    assert difference(made, expected) < 1e-4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "pndm"])
def test_velocity_predictions_are_read_as_the_public_scheduler_reads_them(name: str) -> None:
    made, _ = ours(name, 10, seed=4, is_velocity=True)
    expected, _ = theirs(name, 10, seed=4, prediction_type="v_prediction")
    assert difference(made, expected) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_pndm_extrapolates_noise_where_the_public_one_extrapolates_velocities() -> None:
    differences = []
    for steps in (10, 20, 40):
        made, _ = ours("pndm", steps, seed=4, is_velocity=True)
        expected, _ = theirs("pndm", steps, seed=4, prediction_type="v_prediction")
        differences.append(difference(made, expected))
    assert differences[0] < 0.2
    assert differences[2] < 0.6 * differences[1] < 0.36 * differences[0]


ZERO_TERMINAL = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, **TRAILING}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ddim", "euler", "euler_a", "dpmsolver++"])
@pytest.mark.parametrize("steps", [8, 10])
def test_a_schedule_that_ends_in_pure_noise_is_entered_there(name: str, steps: int) -> None:
    made, asked = ours(name, steps, seed=4, is_velocity=True, zero_terminal=True)
    assert asked[0] == 999
    spacing = {"timestep_spacing": "trailing" if name == "ddim" else "linspace"}
    expected, visited = theirs(name, steps, seed=4, **ZERO_TERMINAL | spacing)
    assert asked == pytest.approx(visited, abs=0.05)
    assert difference(made, expected) < 5e-4  # alpha_bar is not quite 0 where it is divided by


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_copes_with_a_schedule_that_ends_in_pure_noise(name: str) -> None:
    made, asked = ours(name, 20, seed=4, is_velocity=True, zero_terminal=True)
    exact, _ = ours("heun", 400, seed=4, is_velocity=True, zero_terminal=True)
    assert asked[0] == 999
    assert made.isfinite().all()
    if not name.endswith("_a"):
        assert difference(made, exact) < 0.6


@pytest.mark.parametrize("name", SCHEDULERS)
def test_one_step_leads_to_finite_latents(name: str) -> None:
    made, asked = ours(name, 1, seed=4)
    assert len(asked) == 1
    assert made.isfinite().all()
