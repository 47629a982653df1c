"""Deep shrink, gradual latent and regions act inside samplers and UNets as in gen_img."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.diffusion import noise
from sfumato.models.components.unet import depths
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.family import DENOISER
from sfumato.sampling.effects.deep_shrink import shrinking
from sfumato.sampling.effects.gradual_latent import growing
from sfumato.sampling.effects.regions.division import divided
from sfumato.sampling.effects.regions.layout import Layout
from sfumato.sampling.effects.regions.masks import Masks
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent, UnsharpMask
from tests.golden.derived import arrays, assert_recorded, cases, inputs, rule, settings
from tests.golden.test_sampling_steps import Run
from tests.golden.unet_models import generating_unet

pytestmark = pytest.mark.whole_model

NUMBERS = arrays("k_gen_steps")
CASES = cases("k_gen_steps")
SHRUNK = [case for case in CASES if case["id"].startswith("ds")]
GROWING = [case for case in CASES if case["id"].startswith("gl") and "ratio" in case]
DIVIDED = [case for case in CASES if case["id"].startswith("rg")]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def unets() -> Mapping[str, nn.Module]:
    return {kind: generating_unet(kind) for kind in ("sd", "sdxl")}


@torch.no_grad()
def asked(unet: Any, timestep: float, noisy: Tensor, texts: Tensor, vector: Tensor | None) -> Tensor:
    """Return what a UNet makes of inputs; `vector` takes the place of what SDXL is told besides."""
    told = None
    if vector is not None:
        unet.get_aug_embed = lambda **_: unet.add_embedding(vector)
        told = {}
    return unet(noisy, torch.full((len(noisy),), timestep), texts, added_cond_kwargs=told).sample


@pytest.mark.parametrize("case", SHRUNK, ids=lambda case: case["id"])
def test_features_are_shrunk_as_recorded(case: dict[str, Any], unets: Mapping[str, nn.Module]) -> None:
    unet, stem, batch = unets[case["model"]], f"kgs.{case['id']}", case["shape"][0]
    places = (depths.layer_depths if case["model"] == "sdxl" else depths.block_depths)(unet)
    never = 1000
    shrink = DeepShrink(case["depth1"], case["t1"], case["depth2"], case["t2"] or never, case["ratio"])
    vector = inputs(f"{stem}.y", (batch, 1568)) if case["model"] == "sdxl" else None
    told = inputs(f"{stem}.x", case["shape"]), inputs(f"{stem}.ctx", (batch, 77, 48)), vector
    with shrinking(unet, places, shrink, lambda: case["t"]):
        found = asked(unet, case["t"], *told)
    assert_recorded(found, NUMBERS, f"{case['id']}/out", TOLERANCE)
    hooks = (module._forward_hooks | module._forward_pre_hooks for module in unet.modules())
    assert not any(hooks)


@pytest.mark.parametrize("case", GROWING, ids=lambda case: case["id"])
def test_latents_grow_as_recorded(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run, sizes, after = Run(case["id"]), [], []
    drawn: list[list[int]] = []

    def draw(shape: list[int], rng: torch.Generator) -> Tensor:
        drawn.append(list(shape))
        return inputs(f"kgs.{case['id']}.noise{len(drawn) - 1}", shape)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        sizes.append(list(x.shape[2:]))
        return guided(x, sigma)

    monkeypatch.setattr(noise, "draw", draw)
    unsharp, guided = case["unsharp"], run.guided()
    ratio = case["ratio"], case["every_n_steps"], case["ratio_step"], case["s_noise"]
    mask = UnsharpMask(*unsharp) if unsharp and unsharp[0] else None
    grow = growing(GradualLatent(case["start_timesteps"], *ratio, mask), run.space.timestep)
    start = run.space.start(run.input("start"), float(run.sigmas[0]))
    grow(denoise, start, run.sigmas, torch.Generator(), on_step=lambda _, x: after.append(x))
    assert sizes == case["sizes"]
    assert drawn == case["noise_shapes"][:-1]  # there, noise that does not count is drawn too
    for step, latents in enumerate(after):
        assert_recorded(latents, NUMBERS, f"{case['id']}/after{step}", TOLERANCE)


def masks_of(case: dict[str, Any]) -> Tensor:
    """Return masks (n, H, W); there, what is beyond the adapters is nowhere."""
    width, height = case["size"]
    masks = torch.zeros(case["sub_prompts"], height, width)
    for mask, rectangles in zip(masks, case["masks"], strict=False):
        for left, top, right, bottom, value in rectangles:
            mask[top:bottom, left:right] = value / 255
        mask += mask.max() == 0
    return masks


def adapters_of(case: dict[str, Any], unet: nn.Module) -> list[AdapterNetwork]:
    """Return the attached adapters of a case.

    In all but the first, layers beside transformers are adapted too: the recording program remembered that
    one case had asked for it.
    """
    family = (SdxlFamily if case["model"] == "sdxl" else SdFamily)(None)
    lora, networks = settings("k_gen_steps")["regional"]["lora"], []
    targets = list(family.adapter_targets(DENOISER, unet))
    for number, strength in enumerate(case["multipliers"]):
        layers = []
        for target in targets:
            if target.kind == "conv3x3" and case["conv_dim"]:
                layers.append(Lora(target, case["conv_dim"], 1))
            elif target.kind != "conv3x3" and (target.is_default or case["id"] != "rg1"):
                layers.append(Lora(target, lora["dim"], lora["alpha"]))
        network = AdapterNetwork(layers).eval()
        for name, tensor in network.state_dict().items():
            if not name.endswith("alpha"):
                tensor.copy_(rule(f"net{number}:{name}", tensor.shape) * lora["weight_std"])
        network.set_strength(strength)
        network.attach()
        networks.append(network)
    return networks


@pytest.mark.parametrize("case", DIVIDED, ids=lambda case: case["id"])
def test_regions_are_divided_as_recorded(case: dict[str, Any], unets: Mapping[str, nn.Module]) -> None:
    """Recorded rows are negative prompts, prompts and none; here, prompts come first."""
    unet, stem, batch = unets[case["model"]], f"kgs.{case['id']}", case["batch"]
    width, height = case["size"]
    passes = 3 if case["real_uncond"] else 2
    noisy = inputs(f"{stem}.x", (batch, 4, height // 8, width // 8)).repeat(passes, 1, 1, 1)
    rows = {"pos": batch * case["sub_prompts"], "neg": batch, "unc": batch}
    texts = [inputs(f"{stem}.{name}", (num, 77, 48)) for name, num in list(rows.items())[:passes]]
    vector = None
    if case["model"] == "sdxl":
        vector = inputs(f"{stem}.y", (passes * batch, 1568)).roll(batch, dims=0)
    networks = adapters_of(case, unet)
    layout = Layout(batch, case["sub_prompts"])
    with divided(unet, layout, Masks(masks_of(case)), networks):
        found = asked(unet, 500.0, noisy, torch.cat(texts), vector)
    found = torch.cat([found[batch : 2 * batch], found[:batch], found[2 * batch :]])
    assert_recorded(found, NUMBERS, f"{case['id']}/out", TOLERANCE)
    for network in networks:
        network.detach()
    assert not any(module._forward_hooks for module in unet.modules())
